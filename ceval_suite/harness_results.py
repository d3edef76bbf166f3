"""A finished run as lm-evaluation-harness writes its own: `results_*.json`, `samples_*.jsonl`.

Schema: lm_eval 0.4.13, `loggers/evaluation_tracker.py` and `evaluator.py`. What its schema has no
place for is left out and said; what a run does not know (whether a likeliest letter was the
likeliest token of all, seeds, the library's own commit) is `None` there, never made up.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from ceval_suite import __version__, finished, harness_groups, harness_names, rebuilding
from ceval_suite.catalog import load_task
from ceval_suite.comparison import Side
from ceval_suite.errors import RunError, UserError
from ceval_suite.harness_groups import Part
from ceval_suite.prompt import Prompt
from ceval_suite.records import read_json
from ceval_suite.schema import Record
from ceval_suite.specs import Task

SURE = math.log(0.5)
"""Log-probability above which a token is the likeliest whatever the others are."""


def write(run: Path, out: Path, data: Path | None = None) -> str:
    """Write one run below `out/<model>/`, and say in a sentence what is there and what is not.

    Without the benchmark files there are results and no samples; with `data` given, files that are
    not there are an error.

    Raises:
        RunError: nothing is labelled, the files exist already, or the run is of other files.
    """
    side = finished.run_in(run)
    task = load_task(str(side.about["task"]))
    group = harness_names.group_name(
        task, str(side.about.get("protocol")), str(side.about.get("split"))
    )
    subjects = _subjects(side, task, group)
    prompts, why = _prompts(side, data)
    summary = read_json(run / "summary.json") if (run / "summary.json").is_file() else {}
    written = (run / "records.jsonl").stat().st_mtime
    stamp = datetime.fromtimestamp(written).isoformat().replace(":", "-")
    folder = out / _sanitized(side.model)
    target = folder / f"results_{stamp}.json"
    if target.exists():
        raise RunError(f"{target} is there already; delete it, or give another --output.")
    folder.mkdir(parents=True, exist_ok=True)
    hashes: dict[str, str] = {}
    for one in subjects if prompts else ():
        path = folder / f"samples_{one.task}_{stamp}.jsonl"
        digest = hashlib.sha256()
        with path.open("w", encoding="utf-8", newline="\n") as stream:
            for row in _samples(one, prompts):
                digest.update((row["doc_hash"] + row["prompt_hash"] + row["target_hash"]).encode())
                stream.write(json.dumps(row, ensure_ascii=False) + "\n")
        hashes[one.task] = digest.hexdigest()
    content = _results(side, task, group, subjects, summary) | {"task_hashes": hashes}
    content |= _about(side, summary, written)
    text = json.dumps(content, ensure_ascii=False, indent=2)
    target.write_text(text, encoding="utf-8")  # last: whoever sees it sees its samples
    return _sentence(side, task, subjects, why)


def _sentence(side: Side, task: Task, subjects: Sequence[Part], why: str) -> str:
    n = sum(len(one.records) for one in subjects)
    said = [f"{n:,} items of {len(subjects)} subjects"]
    if why:
        said.append(f"results only, no samples: {why}")
    bare = sum(record.correct is None for record in side.records.values())
    if bare:
        said.append(f"{bare:,} items without a label are left out")
    if any(one.metric == "exact_match" for one in subjects):
        said.append("written answers and strings of letters stand as exact_match")
    if task.average == "points":
        said.append("points have no equivalent there: averages are of items")
    if any(record.bounded for record in side.records.values()):
        said.append("some log-probabilities are only the most that they can be")
    return "; ".join(said)


def _subjects(side: Side, task: Task, group: str) -> list[Part]:
    found: dict[str, Part] = {}
    for record in side.records.values():
        if record.correct is None:
            continue
        if record.subject not in found:
            name = harness_names.task_name(group, record.subject)
            found[record.subject] = Part(record.subject, name, "acc")
        one = found[record.subject]
        one.records.append(record)
        if not scored(record):
            one.metric = "exact_match"
    if not found:
        raise RunError(f"{side.path} has no labelled item; lm-eval's results are of labelled ones.")
    for one in found.values():
        one.records.sort(key=lambda record: _place(record.id))
    return [found[name] for name in task.subjects if name in found]


def scored(record: Record) -> bool:
    """Whether a record is what lm-eval calls multiple choice: options, each with a probability."""
    labels = record.logprobs
    return bool(labels) and record.text is None and all(len(label) == 1 for label in labels)


def _place(id: str) -> tuple[int, int]:
    row, _, part = id.rpartition("/")[2].partition("#")
    return (int(row) if row.isdecimal() else 0, int(part) if part.isdecimal() else 0)


def _prompts(side: Side, data: Path | None) -> tuple[dict[str, Prompt], str]:
    """All prompts, or none and why."""
    try:
        _, found = rebuilding.prompts(side, data)
    except UserError as error:
        if data is not None:
            raise
        return {}, f"{str(error).rstrip('.')} (give --data)"
    lost = [id for id in side.records if id not in found]
    if lost:
        return {}, (
            f"{len(lost):,} prompts ({lost[0]} …) hold what only the model's chat template or its "
            "first answer knows"
        )
    return found, ""


def _samples(one: Part, prompts: Mapping[str, Prompt]) -> Iterator[dict[str, Any]]:
    whole = all("#" not in record.id for record in one.records)
    for number, record in enumerate(one.records):
        prompt = prompts[record.id]
        item = prompt.item
        doc = {
            "id": record.id,
            "subject": record.subject,
            "passage": item.passage,
            "question": item.question,
            "choices": list(item.choices),
            "labels": list(item.labels),
            "answer": list(record.answer),
        }
        options = _options(record, prompt) if scored(record) else _written(record, prompt)
        hashed = json.dumps(doc, indent=2, ensure_ascii=False)
        metric = "acc" if one.metric == "acc" else "exact_match"
        yield {
            "doc_id": _place(record.id)[0] if whole else number,
            "doc": doc,
            **options,
            "filter": "none",
            "metrics": [metric],
            "doc_hash": _sha256(hashed),
            "prompt_hash": _sha256(options["arguments"]["gen_args_0"]["arg_0"]),
            "target_hash": _sha256(options["target"]),
            metric: float(bool(record.correct)),
        }


def _options(record: Record, prompt: Prompt) -> dict[str, Any]:
    labels = list(prompt.item.labels)
    gold = [labels.index(letter) for letter in record.answer]
    values = [record.logprobs[label] for label in labels]
    best = max(values)
    pairs = [[str(value), _greedy(value, best)] for value in values]
    context = prompt.text + prompt.lead
    return {
        "target": str(gold[0] if len(gold) == 1 else gold),
        "arguments": {
            f"gen_args_{k}": {"arg_0": context, "arg_1": continuation}
            for k, continuation in enumerate(prompt.continuations)
        },
        "resps": [[pair] for pair in pairs],
        "filtered_resps": pairs,
    }


def _greedy(value: float, best: float) -> str:
    """Whether an option is what greedy writing gives, where its probability alone says so."""
    if value < best:
        return "False"
    return "True" if value > SURE else "None"


def _written(record: Record, prompt: Prompt) -> dict[str, Any]:
    predicted = "".join(record.prediction)
    settings: Any = {"until": list(prompt.stop), "max_gen_toks": prompt.max_new_tokens}
    if not prompt.max_new_tokens:  # letters read off log-probabilities one after the other
        settings = {"method": prompt.method}
    return {
        "target": "".join(record.answer),
        "arguments": {"gen_args_0": {"arg_0": prompt.text, "arg_1": settings}},
        "resps": [[predicted if record.text is None else record.text]],
        "filtered_resps": [predicted],
    }


def _results(
    side: Side,
    task: Task,
    group: str,
    subjects: Sequence[Part],
    summary: Mapping[str, Any],
) -> dict[str, Any]:
    shots = int(side.about.get("shots") or 0)
    version = harness_names.VERSIONS.get(group, float(task.version))
    metadata = {
        "version": version,
        "ceval_suite": side.about.get("ceval_suite", __version__),
        "task": task.name,
        "protocol": side.about.get("protocol"),
        "protocol_sha256": side.protocol,
        "split": side.about.get("split"),
        "data_sha256": (side.about.get("data") or {}).get("sha256"),
    }
    found = harness_groups.groups(task, group, subjects)
    rows = {one.task: harness_groups.row(one) for one in subjects}
    totals = {name: row for name, (_, row) in found.items()}
    return {
        "results": {**totals, **rows},
        "groups": totals,
        "group_subtasks": {name: members for name, (members, _) in found.items()},
        "configs": {
            one.task: {
                "task": one.task,
                "task_alias": one.name,
                "dataset_path": "ceval_suite",
                "dataset_name": one.name,
                f"{side.about.get('split')}_split": side.about.get("split"),
                "output_type": "multiple_choice" if one.metric == "acc" else "generate_until",
                "metric_list": [
                    {"metric": one.metric, "aggregation": "mean", "higher_is_better": True}
                ],
                "num_fewshot": shots,
                "metadata": metadata,
            }
            for one in subjects
        },
        "versions": {**dict.fromkeys(rows, version), **dict.fromkeys(totals, str(version))},
        "n-shot": dict.fromkeys((*totals, *rows), shots),
        "higher_is_better": {
            name: {key.partition(",")[0]: True for key in row if key.endswith(",none")}
            for name, row in (*totals.items(), *rows.items())
        },
        "n-samples": {
            one.task: {
                "original": task.subjects[one.name].counts.get(
                    str(side.about.get("split")), len(one.records)
                ),
                "effective": len(one.records),
            }
            for one in subjects
        },
    }


def _about(side: Side, summary: Mapping[str, Any], written: float) -> dict[str, Any]:
    model: Mapping[str, Any] = side.about.get("model") or {}
    engine: Mapping[str, Any] = side.about.get("engine") or {}
    dtype = engine.get("dtype")
    seconds = sum((summary.get("seconds") or {}).values())
    config = {
        "model": "ceval_suite",
        "model_args": {"pretrained": side.model}
        | {key: model[key] for key in ("path", "revision", "dtype") if model.get(key)},
        "model_dtype": f"torch.{dtype}" if dtype else None,
        "model_revision": model.get("revision"),
        "model_sha": side.about.get("identity", {}).get("weights_sha256"),
        "batch_size": "auto",
        "batch_sizes": [],
        "device": engine.get("device"),
        "use_cache": None,
        "limit": side.about.get("limit"),
        "bootstrap_iters": 0,
        "gen_kwargs": {},
        "random_seed": None,
        "numpy_seed": None,
        "torch_seed": None,
        "fewshot_seed": None,
    }
    return {
        "config": config,
        "git_hash": None,
        "date": written - seconds,
        "pretty_env_info": json.dumps(engine.get("versions") or {}),
        "transformers_version": (engine.get("versions") or {}).get("transformers"),
        "lm_eval_version": None,
        "ceval_suite_version": side.about.get("ceval_suite", __version__),
        "upper_git_hash": None,
        "max_length": engine.get("max_length"),
        "model_source": "ceval_suite",
        "model_name": side.model,
        "model_name_sanitized": _sanitized(side.model),
        "system_instruction": None,
        "system_instruction_sha": None,
        "fewshot_as_multiturn": None,
        "chat_template": "the model's own" if side.about.get("chat") else None,
        "chat_template_sha": None,
        "total_evaluation_time_seconds": str(seconds),
    }


def _sanitized(name: str) -> str:
    """A model's name as lm-eval writes it into paths (`sanitize_model_name`)."""
    out = "".join("\0" if c in '"<>:/|\\?*[]' else c for c in name)
    return "__".join(part for part in out.split("\0") if part) or "model"


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
