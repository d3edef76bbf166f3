"""`import` and `lm-eval`: what comes from lm-evaluation-harness, and the harness on our engine."""

from __future__ import annotations

import sys

import typer

from ceval_suite.errors import ConfigError

PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
"""Settings of a verb all of whose arguments are another program's."""


def lm_eval(context: typer.Context) -> None:
    """Run lm-eval's own command line with --model ceval_suite known to it."""
    try:
        from lm_eval.__main__ import cli_evaluate
    except ImportError as error:
        raise ConfigError(
            f"lm-eval is not installed as it should be ({error.name}); run \"pip install lm-eval\"."
        ) from error
    from ceval_suite.backends import harness

    harness.register()
    sys.argv = ["lm-eval", *context.args]
    cli_evaluate()
