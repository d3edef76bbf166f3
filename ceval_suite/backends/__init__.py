"""Backends by name, imported only when one is opened."""

from __future__ import annotations

from importlib import import_module

from ceval_suite.backends.base import Backend, Say
from ceval_suite.errors import ModelError, unknown
from ceval_suite.specs import ModelSpec

BACKENDS = {"hf": "ceval_suite.backends.hf:HFBackend"}


def open_backend(spec: ModelSpec, say: Say = lambda _: None) -> Backend:
    """Load a model and return the backend that scores with it.

    Raises:
        ModelError: unknown backend, missing package, or a checkpoint that cannot be loaded.
    """
    if spec.backend not in BACKENDS:
        raise ModelError(unknown("backend", spec.backend, BACKENDS))
    module, name = BACKENDS[spec.backend].split(":")
    try:
        opener = getattr(import_module(module), name)
    except ImportError as error:
        raise ModelError(
            f"backend '{spec.backend}' needs a package that is not installed ({error.name}); "
            "run 'pip install ceval-suite' again in this environment."
        ) from error
    backend: Backend = opener(spec, say)
    return backend
