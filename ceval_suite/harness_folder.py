"""A task of ours as a folder of lm-evaluation-harness tasks: the same prompts, the same numbers.

Every document holds the whole prompt as we put it, byte for byte, with what is scored after it, so
that nothing is rendered there: `lm_eval --include_path FOLDER --tasks ceval_suite_mmlu`. The
documents are made from the user's own benchmark files; none of them ships.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ceval_suite import finished, harness_names, rebuilding
from ceval_suite.errors import ConfigError, RunError
from ceval_suite.prepare import Prepared, Selection, prepare
from ceval_suite.prompt import Prompt

README = """\
# {title}

Made by ceval-suite {command}. Run it with

    lm_eval --include_path {folder} --tasks {group} --model hf --model_args pretrained=…

- Every document is a whole prompt ({protocol}, {shots}-shot); give no --num_fewshot.
- {average}
- A prompt longer than the model's context is cut on the left there; here whole shots are dropped.
{notes}
The YAML files name the documents by their absolute paths: after moving this folder, export again.
"""


@dataclass
class _Made:
    """Documents by subject, and how many items of each kind were left out."""

    docs: dict[str, list[dict[str, Any]]] = field(default_factory=dict[str, "list[dict[str, Any]]"])
    left: Counter[str] = field(default_factory=Counter[str])


def of_task(name: str, chosen: Selection, out: Path) -> str:
    """Write the folder of a task, and say in a sentence what is in it.

    Raises:
        UserError: the files are not there, or nothing of it is what lm-eval can score.
    """
    prepared = prepare(name, chosen)
    prompts = [
        renderer.render(item)
        for subject in prepared.subjects
        for renderer in [prepared.renderer(subject)]
        for item in prepared.items[subject]
    ]
    return _write(prepared, prompts, out)


def of_run(run: Path, out: Path, data: Path | None = None) -> str:
    """Write the folder of exactly the prompts that a run was asked, dropped shots included.

    Raises:
        UserError: as `of_task`, or a prompt cannot be rebuilt.
    """
    side = finished.run_in(run)
    prepared, found = rebuilding.prompts(side, data)
    lost = [id for id in side.records if id not in found]
    if lost:
        raise RunError(
            f"{run}: the prompt of {lost[0]} holds what only the model knows (its chat template or "
            "an answer of its own); export a task with --task instead."
        )
    return _write(prepared, list(found.values()), out)


def _write(prepared: Prepared, prompts: list[Prompt], out: Path) -> str:
    task = prepared.task
    _refuse(prepared)
    made = _Made()
    for prompt in prompts:
        doc = _doc(prompt, made)
        if doc is not None:
            made.docs.setdefault(prompt.item.subject, []).append(doc)
    if not made.docs:
        raise ConfigError(
            f"task '{task.name}', protocol '{prepared.protocol}': nothing is left that lm-eval can "
            f"score ({_left(made)}); try another --protocol."
        )
    if out.exists():
        raise RunError(f"{out} is there already; give another --output, or delete it.")
    group = harness_names.group_name(task, prepared.protocol, prepared.split)
    if not group.startswith(harness_names.PREFIX):  # lm-eval's own names stay lm-eval's
        group = f"{harness_names.PREFIX}{task.name}_{prepared.protocol}"
    partial = out.with_name(f".{out.name}.partial")
    (partial / "docs").mkdir(parents=True)
    names = {s: harness_names.task_name(group, s) for s in task.subjects if s in made.docs}
    for subject, name in names.items():
        path = f"docs/{name}.jsonl"
        lines = (json.dumps(doc, ensure_ascii=False) + "\n" for doc in made.docs[subject])
        (partial / path).write_text("".join(lines), encoding="utf-8", newline="\n")
        _yaml(partial / f"{name}.yaml", _task(prepared, subject, name, out.resolve() / path))
    for name, content in _groups(prepared, group, names).items():
        _yaml(partial / f"_{name}.yaml", content)
    n = sum(map(len, made.docs.values()))
    said = f"{n:,} documents of {len(names)} subjects"
    said += f"; run: lm_eval --include_path {out} --tasks {group}"
    notes = f"- Left out: {_left(made)}.\n" if made.left else ""
    (partial / "README.md").write_text(
        README.format(
            title=task.title,
            command=f"export --task {task.name} --as lm-eval-tasks",
            folder=out,
            group=group,
            protocol=prepared.protocol,
            shots=prepared.shots,
            average=_average(prepared, group),
            notes=notes,
        ),
        encoding="utf-8",
    )
    os.replace(partial, out)
    return said + (f"; left out: {_left(made)}" if made.left else "")


def _left(made: _Made) -> str:
    return ", ".join(f"{n:,} {why}" for why, n in made.left.items())


def _refuse(prepared: Prepared) -> None:
    template, name = prepared.template, prepared.protocol
    if prepared.split in prepared.task.unlabelled:
        raise ConfigError(
            f"{prepared.task.name} {prepared.split} has no labels, and lm-eval scores what it asks;"
            f" take --split {prepared.task.split}."
        )
    if template.read_as:
        raise ConfigError(
            f"protocol '{name}' reads letters by token ids, for which lm-eval has no equivalent; "
            "take another --protocol."
        )
    if template.normalise != "none":
        raise ConfigError(
            f"protocol '{name}' takes the option of the best {template.normalise} score, for which "
            "lm-eval has no equal; take another --protocol."
        )


def _doc(prompt: Prompt, made: _Made) -> dict[str, Any] | None:
    item = prompt.item
    if prompt.method not in ("letters", "continuation"):
        kind = f"of kind {item.kind}" if prompt.method is None else f"answered by {prompt.method}"
        made.left[kind] += 1
        return None
    if not item.answer:
        made.left["without a label"] += 1
        return None
    labels = list(item.labels)
    return {
        "id": item.id,
        "prompt": prompt.text + prompt.lead,
        "continuations": list(prompt.continuations),
        "gold": [labels.index(letter) for letter in item.answer],
        "labels": labels,
    }


def _task(prepared: Prepared, subject: str, name: str, docs: Path) -> dict[str, Any]:
    row = prepared.task.subjects[subject]
    lists = prepared.template.match == "any"
    return {
        "task": name,
        "task_alias": row.title or subject,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {prepared.split: str(docs)}},
        "test_split": prepared.split,
        "output_type": "multiple_choice",
        "num_fewshot": 0,
        "doc_to_text": "{{prompt}}",
        "doc_to_choice": "{{continuations}}",
        "doc_to_target": "{{gold}}" if lists else "{{gold[0]}}",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {
            "version": float(prepared.task.version),
            "protocol": prepared.protocol,
            "shots": prepared.shots,
            "limit": prepared.limit,
            "protocol_sha256": prepared.fingerprint,
        },
    }


def _groups(prepared: Prepared, group: str, names: dict[str, str]) -> dict[str, dict[str, Any]]:
    task = prepared.task
    every = list(names.values())
    macro = task.average == "macro"
    out = {group: (task.title, every, not macro)}
    out[f"{group}_{'micro' if macro else 'macro'}"] = (
        f"{task.title}, {'micro' if macro else 'macro'}",
        every,
        macro,
    )
    for kinds in (task.categories, task.groups):
        for category, members in kinds.items():
            some = [names[s] for s in names if s in members]
            if some and len(some) < len(every):
                name = harness_names.category_name(group, category)
                out[name] = (f"{task.title}, {category}", some, not macro)
    return {
        name: {
            "group": name,
            "group_alias": alias,
            "task": some,
            "aggregate_metric_list": [
                {"metric": "acc", "aggregation": "mean", "weight_by_size": by_size}
            ],
            "metadata": {"version": float(task.version)},
        }
        for name, (alias, some, by_size) in out.items()
    }


def _average(prepared: Prepared, group: str) -> str:
    rule = prepared.task.average
    if rule == "points":
        return (
            f"{group} averages over items (micro), {group}_macro over subjects; the benchmark's "
            "own average is of points, which lm-eval cannot make."
        )
    other = "macro" if rule == "micro" else "micro"
    return f"{group} is the official average ({rule}), {group}_{other} the other one ({other})."


def _yaml(path: Path, content: dict[str, Any]) -> None:
    text = yaml.safe_dump(content, allow_unicode=True, sort_keys=False, width=1000)
    path.write_text(text, encoding="utf-8")
