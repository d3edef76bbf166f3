"""`ceval-suite watch`: checkpoints scored as a training job writes them, and its curves."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ceval_suite.cli_board import GATE
from ceval_suite.cli_data import ensure, listed
from ceval_suite.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ceval_suite.prepare import Prepared, Selection
    from ceval_suite.rules import Rule
    from ceval_suite.watching import Scored, Wanted

    Tellers = Sequence[Callable[[str], None]]
    Ruled = tuple[list[Rule], list[Rule]]


def _say(line: str) -> None:
    typer.echo(line, err=True)


Tasks = Annotated[str, typer.Option(help="Tasks, separated by commas.")]
Base = Annotated[
    str | None, typer.Option(help="Model under adapters; its tokenizer where there is none.")
]
Name = Annotated[str | None, typer.Option(help="Name of the training job.")]
Out = Annotated[Path, typer.Option(help="Folder for run folders.")]
Every = Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")]
InOrder = Annotated[
    bool, typer.Option("--all", help="All, by step; else the newest first, then older ones.")
]
Newest = Annotated[
    bool, typer.Option("--newest", help="Only the newest; leave out what it overtook.")
]
Once = Annotated[bool, typer.Option("--once", help="Score what is finished, and end.")]
Until = Annotated[int | None, typer.Option(help="End when this step is scored, or cannot be.")]
Idle = Annotated[
    float | None, typer.Option(help="End when nothing has changed for so many seconds.")
]
Stop = Annotated[
    list[str] | None, typer.Option(help="End with exit code 3 when a rule holds; repeatable.")
]
AlertWhen = Annotated[list[str] | None, typer.Option(help="Say so when a rule holds; repeatable.")]
Command = Annotated[
    str | None, typer.Option(help="Program (with arguments) that is given the sentence.")
]
Webhook = Annotated[str | None, typer.Option(help="Address that is posted it.")]
Several = Annotated[str | None, typer.Option(help="One or several, separated by commas.")]
Split = Annotated[str | None, typer.Option(help="Split to score.")]
Limit = Annotated[int | None, typer.Option(min=1, help="First N items per subject.")]
Subset = Annotated[int | None, typer.Option(min=1, help="A subset of N items a task.")]
Data = Annotated[Path | None, typer.Option(help="Folder with the benchmark files.")]
Chat = Annotated[bool, typer.Option("--chat", help="Wrap prompts in the template.")]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps.")]
Context = Annotated[int | None, typer.Option(min=1, help="Context in tokens.")]
Memory = Annotated[str | None, typer.Option(help="Most for weights and work: 8GB.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


def watch(
    folder: Annotated[Path, typer.Argument(help="Folder that fills with checkpoints.")],
    tasks: Tasks,
    base: Base = None,
    name: Name = None,
    out: Out = Path("runs"),
    every: Every = 30.0,
    in_order: InOrder = False,
    newest: Newest = False,
    once: Once = False,
    until: Until = None,
    idle: Idle = None,
    stop_when: Stop = None,
    alert_when: AlertWhen = None,
    alert_command: Command = None,
    webhook: Webhook = None,
    protocol: Several = None,
    shots: Several = None,
    split: Split = None,
    subjects: Several = None,
    limit: Limit = None,
    items: Subset = None,
    data: Data = None,
    chat: Chat = False,
    dtype: Dtype = None,
    device: Device = None,
    max_length: Context = None,
    memory: Memory = None,
    as_json: Json = False,
) -> None:
    """Score new checkpoints as they finish, full ones and adapters, and draw the curves."""
    from ceval_suite import watching
    from ceval_suite.prepare import Selection

    if in_order and newest:
        raise ConfigError("--all and --newest exclude each other; give one.")
    ruled = _rules(stop_when or [], alert_when or [], listed(tasks))
    tell = _tellers(alert_command, webhook)
    some = listed(subjects) or None
    chosen = Selection(None, None, split, some, limit, data, chat, items=items)
    wanted = watching.Wanted(
        folder=folder,
        tasks=_prepared(listed(tasks), chosen, protocol, shots),
        out=out,
        name=name or folder.resolve().name,
        base=base,
        options={"dtype": dtype, "device": device, "max_length": max_length, "memory": memory},
        order="all" if in_order else "newest" if newest else "newest-first",
        every=every,
        once=once,
        until=until,
        idle=idle,
    )
    _watch(wanted, ruled, tell, as_json)


def _prepared(
    tasks: list[str], chosen: Selection, protocol: str | None, shots: str | None
) -> list[Prepared]:
    from ceval_suite import sweep
    from ceval_suite.prepare import prepare

    if not tasks:
        raise ConfigError("--tasks names no task; 'ceval-suite list tasks' shows them.")
    some = sweep.selections(chosen, listed(protocol), listed(shots))
    ensure(tasks, None if chosen.data is None else Path(chosen.data))
    return [prepare(task, one) for task in tasks for one in some]


def _watch(wanted: Wanted, ruled: Ruled, tell: Tellers, as_json: bool) -> None:
    from ceval_suite import watching

    told: set[tuple[str, int]] = set()
    old: Scored | None = None
    watcher = watching.Watcher(wanted, _say)
    for scored in watcher:
        old = None if scored.new else scored
        if scored.new:
            _draw(scored, as_json)
            if _judge(scored, ruled, tell, told):
                raise typer.Exit(GATE)
    if old is not None:  # nothing was new, so that nothing was shown
        _draw(old, as_json)
        if _judge(old, ruled, tell, told):
            raise typer.Exit(GATE)
    if watcher.failed:
        names = ", ".join(sorted(folder.name for folder in watcher.failed))
        raise ModelError(f"not scored: {names}; see above why, and start the same command again.")


def _rules(stops: list[str], alerts: list[str], tasks: list[str]) -> Ruled:
    from ceval_suite import rules

    found = rules.read_all(stops), rules.read_all(alerts)
    rules.check([*found[0], *found[1]], tasks)
    return found


def _tellers(command: str | None, webhook: str | None) -> Tellers:
    from ceval_suite import alerts

    found = [alerts.command(command, _say)] if command is not None else []
    return found + ([alerts.webhook(webhook, _say)] if webhook is not None else [])


def _draw(scored: Scored, as_json: bool) -> None:
    from ceval_suite.report import curve, table

    for one in scored.curves:
        if as_json:
            typer.echo(table.to_json(curve.curve(one)))
            continue
        table.show(curve.curve(one))
        if plot := curve.plot(one):
            typer.echo(plot)


def _judge(scored: Scored, ruled: Ruled, tell: Tellers, told: set[tuple[str, int]]) -> bool:
    """Say, once for a checkpoint, which rules hold; whether one of them ends the watch."""
    from ceval_suite import watching
    from ceval_suite.report import curve

    ends = False
    for found, stops_here in watching.judged(ruled[1], ruled[0], scored.curves):
        ends = ends or stops_here
        if (found.rule.text, found.point.step) in told:
            continue
        told.add((found.rule.text, found.point.step))
        sentence = curve.holds(found)
        _say(f"{'stop' if stops_here else 'alert'}: {sentence}")
        for one in tell:
            one(sentence)
    return ends
