"""Evaluation of Chinese and English LLM benchmarks by first-token logits.

>>> import ceval_suite
>>> issubclass(ceval_suite.RunError, ceval_suite.UserError)
True

Names are looked up when they are used: importing the package alone loads nothing heavy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ceval_suite.api import (
        Results,
        board,
        compare,
        evaluate,
        find_runs,
        load_model,
        load_records,
    )
    from ceval_suite.backends.callback import EvaluationCallback
    from ceval_suite.errors import (
        ConfigError,
        DataError,
        ModelError,
        PromptError,
        RunError,
        UserError,
    )
    from ceval_suite.schema import Record, Request
    from ceval_suite.training import Scores, score_live

__version__ = "0.1.0"

_FROM = {
    "api": (
        *("Results", "board", "compare", "evaluate", "find_runs", "load_model", "load_records"),
    ),
    "backends.callback": ("EvaluationCallback",),
    "errors": (
        *("ConfigError", "DataError", "ModelError", "PromptError", "RunError", "UserError"),
    ),
    "schema": ("Record", "Request"),
    "training": ("Scores", "score_live"),
}
_WHERE = {name: module for module, names in _FROM.items() for name in names}

__all__ = [
    "ConfigError",
    "DataError",
    "EvaluationCallback",
    "ModelError",
    "PromptError",
    "Record",
    "Request",
    "Results",
    "RunError",
    "Scores",
    "UserError",
    "__version__",
    "board",
    "compare",
    "evaluate",
    "find_runs",
    "load_model",
    "load_records",
    "score_live",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'ceval_suite' has no attribute '{name}'")
    return getattr(import_module(f"ceval_suite.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
