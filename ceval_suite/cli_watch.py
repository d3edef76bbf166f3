"""`ceval-suite watch`: checkpoints scored as a training job writes them, and its curves."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ceval_suite.cli_board import GATE
from ceval_suite.cli_data import ensure, listed
from ceval_suite.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ceval_suite.rules import Rule
    from ceval_suite.watching import Scored


def _say(line: str) -> None:
    typer.echo(line, err=True)


def watch(
    folder: Annotated[Path, typer.Argument(help="Folder that fills with checkpoints.")],
    tasks: Annotated[str, typer.Option(help="Tasks, separated by commas.")],
    base: Annotated[
        str | None, typer.Option(help="Model under adapters; its tokenizer where there is none.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the training job.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for run folders.")] = Path("runs"),
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 30.0,
    in_order: Annotated[
        bool, typer.Option("--all", help="All, by step; else the newest first, then older ones.")
    ] = False,
    newest: Annotated[
        bool, typer.Option("--newest", help="Only the newest; leave out what it overtook.")
    ] = False,
    once: Annotated[bool, typer.Option("--once", help="Score what is finished, and end.")] = False,
    until: Annotated[int | None, typer.Option(help="End when this step is scored.")] = None,
    idle: Annotated[
        float | None, typer.Option(help="End when nothing has changed for so many seconds.")
    ] = None,
    stop_when: Annotated[
        list[str] | None, typer.Option(help="End with exit code 3 when a rule holds; repeatable.")
    ] = None,
    alert_when: Annotated[
        list[str] | None, typer.Option(help="Say so when a rule holds; repeatable.")
    ] = None,
    alert_command: Annotated[
        str | None, typer.Option(help="Program (with arguments) that is given the sentence.")
    ] = None,
    webhook: Annotated[str | None, typer.Option(help="Address that is posted it.")] = None,
    protocol: Annotated[str | None, typer.Option(help="Wordings, separated by commas.")] = None,
    shots: Annotated[str | None, typer.Option(help="Shots per prompt, one or more.")] = None,
    split: Annotated[str | None, typer.Option(help="Split to score.")] = None,
    subjects: Annotated[str | None, typer.Option(help="Subjects, separated by commas.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="First N items per subject.")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder with the benchmark files.")] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Wrap prompts in the template.")] = False,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps.")] = None,
    max_length: Annotated[int | None, typer.Option(min=1, help="Context in tokens.")] = None,
    memory: Annotated[str | None, typer.Option(help="Most for weights and work: 8GB.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Score new checkpoints as they finish, full ones and adapters, and draw the curves."""
    from ceval_suite import sweep, watching
    from ceval_suite.prepare import Selection, prepare

    if in_order and newest:
        raise ConfigError("--all and --newest exclude each other; give one.")
    if not listed(tasks):
        raise ConfigError("--tasks names no task; 'ceval-suite list tasks' shows them.")
    ruled = _rules(stop_when or [], alert_when or [], listed(tasks))
    tell = _tellers(alert_command, webhook)
    chosen = Selection(None, None, split, listed(subjects) or None, limit, data, chat)
    ensure(listed(tasks), data)
    prepared = [
        prepare(task, one)
        for task in listed(tasks)
        for one in sweep.selections(chosen, listed(protocol), listed(shots))
    ]
    wanted = watching.Wanted(
        folder=folder,
        tasks=prepared,
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
    told: set[tuple[str, int]] = set()
    old: Scored | None = None
    for scored in watching.Watcher(wanted, _say):
        old = None if scored.new else scored
        if scored.new:
            _draw(scored, as_json)
            if _judge(scored, *ruled, tell, told):
                raise typer.Exit(GATE)
    if old is not None:  # nothing was new, so that nothing was shown
        _draw(old, as_json)
        if _judge(old, *ruled, tell, told):
            raise typer.Exit(GATE)


def _rules(stops: list[str], alerts: list[str], tasks: list[str]) -> tuple[list[Rule], list[Rule]]:
    from ceval_suite import rules

    found = rules.read_all(stops), rules.read_all(alerts)
    rules.check([*found[0], *found[1]], tasks)
    return found


def _tellers(command: str | None, webhook: str | None) -> list[Callable[[str], None]]:
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


def _judge(
    scored: Scored,
    stops: Sequence[Rule],
    alerts: Sequence[Rule],
    tell: Sequence[Callable[[str], None]],
    told: set[tuple[str, int]],
) -> bool:
    """Say, once for a checkpoint, which rules hold; whether one of them ends the watch."""
    from ceval_suite import watching
    from ceval_suite.report import curve

    ends = False
    for found, stops_here in watching.judged(alerts, stops, scored.curves):
        ends = ends or stops_here
        if (found.rule.text, found.point.step) in told:
            continue
        told.add((found.rule.text, found.point.step))
        sentence = curve.holds(found)
        _say(f"{'stop' if stops_here else 'alert'}: {sentence}")
        for one in tell:
            one(sentence)
    return ends
