"""Backends by name, imported only when one is opened."""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

from ceval_suite.backends import ranks
from ceval_suite.backends.base import Backend, Say
from ceval_suite.backends.crew import Crew
from ceval_suite.backends.sources import identity, resolve
from ceval_suite.backends.standing import Stamps
from ceval_suite.errors import ModelError, UserError, unknown
from ceval_suite.model_spec import ModelSpec

BACKENDS = {
    "hf": "ceval_suite.backends.hf:HFBackend",
    "server": "ceval_suite.backends.server:ServerBackend",
    "vllm": "ceval_suite.backends.vllm:VllmBackend",
    "lm_eval": "ceval_suite.backends.lm_eval:LmEvalBackend",
}

IDENTITIES = {
    "server": "ceval_suite.backends.proof:identity",
    "lm_eval": "ceval_suite.backends.lm_eval:identity",
}
"""Who says which model answers, where that is not the files alone."""

EXTRAS = {"vllm": "ceval-suite[vllm]", "ray": "ceval-suite[ray]"}
"""What to install for a backend whose package ceval-suite does not bring along."""


def open_backend(spec: ModelSpec, say: Say = lambda _: None) -> Backend:
    """Load a model and return the backend that asks it.

    Raises:
        ModelError: unknown backend, missing package, or a checkpoint that cannot be loaded.
    """
    if spec.backend not in BACKENDS:
        raise ModelError(unknown("backend", spec.backend, BACKENDS))
    if ranks.count() > 1 and spec.tp_plan is None:
        raise ModelError(
            f"{spec.path}: torchrun started {ranks.count()} processes, and only a model with "
            "tp_plan: auto is shared among them; start this one without torchrun."
        )
    try:
        backend: Backend = _named(BACKENDS[spec.backend])(spec, say)
    except ImportError as error:
        raise _missing(f"backend '{spec.backend}'", spec.backend, error) from error
    return backend


def _missing(what: str, name: str, error: ImportError) -> ModelError:
    wanted = EXTRAS.get(name, "ceval-suite")
    return ModelError(
        f"{what} needs a package that is not installed ({error.name}); "
        f"run \"pip install '{wanted}'\" in this environment."
    )


def open_crew(
    workers: int,
    *,
    address: str | None,
    gpus: float | None,
    patience: float,
    coming: int,
) -> Crew:
    """Workers of a Ray cluster, or (without an address) of one made of this machine.

    Raises:
        ModelError: Ray is not installed, or no cluster answers.
    """
    try:
        hands = _named("ceval_suite.backends.ray:RayHands")(
            open_backend, identify, workers, address=address, gpus=gpus
        )
    except ImportError as error:
        raise _missing("--workers", "ray", error) from error
    return Crew(hands, workers, identify, patience=patience, coming=coming)


def identify(spec: ModelSpec) -> dict[str, Any]:
    """What decides whether two runs used the same model; equal means records may be reused.

    Raises:
        ModelError: the model cannot be found.
    """
    if spec.backend in IDENTITIES:
        found: dict[str, Any] = _named(IDENTITIES[spec.backend])(spec)
        return found
    return identity(spec, resolve(spec))


class Unchanged:
    """Sees that a model's files stay those of its identity while its answers are recorded."""

    def __init__(self, spec: ModelSpec) -> None:
        """Raises ModelError when the model cannot be found."""
        self._spec = spec
        stamps = Stamps(spec)  # before they are read: what changes meanwhile is noticed
        self.identity = identify(spec)
        self._stamps = stamps or Stamps(spec)  # what had to be fetched first

    def check(self) -> None:
        """See that nothing was replaced; a file that was written again as it was does no harm.

        Raises:
            ModelError: a file is another one than was read.
        """
        file = self._stamps.changed()
        if file is None:
            return
        self._stamps.renew()
        try:
            same = identify(self._spec) == self.identity
        except UserError:  # half written
            same = False
        if not same:
            raise ModelError(
                f"{file}: this file of the checkpoint was replaced or changed while the run was "
                "going on; records made before are kept and belong to the old one: put that back "
                "and start the same command again, or give another --out."
            )


def follow() -> int:
    """What a process beside the first does: load and compute what the first one does, and no more.

    Returns:
        The process's exit code, when the first has ended or something went wrong.
    """
    backend: Backend | None = None
    try:
        ranks.join()
        while (order := ranks.agreed()) is not None:
            if isinstance(order, ModelSpec):
                backend = None  # two models need not fit
                backend = open_backend(order)
            else:
                assert backend is not None
                for _ in backend.ask(order):
                    pass
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # whatever it is, the first process waits for this one
        if os.environ.get("CEVAL_SUITE_DEBUG"):
            raise
        ranks.report(" ".join(str(error).split()) or type(error).__name__)
        return 1
    ranks.leave()
    return 0


def _named(reference: str) -> Any:
    module, name = reference.split(":")
    return getattr(import_module(module), name)
