"""How a command ends: an exit code and, where something went wrong, one sentence.

0 ok, 1 user error, 2 usage, 3 a gate failed, 130 interrupted (records kept).
"""

from __future__ import annotations

import os
import shlex
import sys
from typing import NoReturn

import typer

from ceval_suite import beacon, stopping, terminal
from ceval_suite.errors import UserError, no_memory


def say(line: str) -> None:
    """One line for the person, on stderr."""
    typer.echo(line, err=True)


def run(app: typer.Typer) -> None:
    """Run the command line; turn user errors into one sentence and exit code 1."""
    stopping.listen()
    with terminal.guarded():
        try:
            _run(app)
        except SystemExit as end:
            beacon.end("failed" if end.code else "finished")
            raise
        except BaseException:
            beacon.end("failed")
            raise
        beacon.end("finished")


def _run(app: typer.Typer) -> None:
    command = typer.main.get_command(app)
    try:
        # not app(): typer would turn an interrupt or a closed pipe into an exit code of its own
        with command.make_context("ceval-suite", sys.argv[1:]) as context:
            command.invoke(context)
        sys.stdout.flush()
    except UserError as error:
        if os.environ.get("CEVAL_SUITE_DEBUG"):
            raise
        say(f"error: {error}")
        sys.exit(1)
    except KeyboardInterrupt:
        beacon.end("interrupted")
        say("\ninterrupted; finished records are kept. To go on:")
        say("  " + shlex.join(["ceval-suite", *sys.argv[1:]]))
        sys.exit(130)
    except BrokenPipeError:
        # the reader (head, less) has seen enough; what is buffered must not be flushed at exit
        nothing = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr):
            os.dup2(nothing, stream.fileno())
        if beacon.at_work():  # nobody reads what is said, and items are left
            beacon.end("interrupted")
            sys.exit(130)
        sys.exit(0)
    except typer.Exit as end:
        sys.exit(end.exit_code)
    except Exception as error:
        _other(error)


def _other(error: Exception) -> NoReturn:
    show = getattr(error, "show", None)  # wrong usage, in click's classes or typer's own copies
    if show is not None:
        show()
        sys.exit(2)
    if os.environ.get("CEVAL_SUITE_DEBUG"):
        raise error
    if no_memory(error):
        say(
            "error: out of memory (--memory): the machine or its limit has no more to give "
            f"({terminal.one_line(error)[:120]}); give --memory, a narrower --dtype or another "
            "device, and start the same command again: finished records are kept."
        )
        sys.exit(1)
    if isinstance(error, RecursionError):
        say("error: a file that was read is nested too deeply; look at those given or named.")
        sys.exit(1)
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        say(f"error: {where}{error.strerror or error}; finished records are kept.")
        sys.exit(1)
    raise error
