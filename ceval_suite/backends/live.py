"""A model in the midst of its training, asked as it stands and left as it was found.

Where several processes train it: under DDP each has all weights, the first one computes and the
others wait; where weights lie in shards (FSDP, tensor parallelism) every forward pass needs all of
them, so all compute the same requests in step and the first one keeps the replies.
"""

from __future__ import annotations

import copy
import gc
import hashlib
import json
import os
import sys
import threading
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist

from ceval_suite.backends import adapter_proof, loading, weights
from ceval_suite.backends.adapters import Attached, Whole
from ceval_suite.backends.base import Backend, Say
from ceval_suite.backends.hf import HFBackend
from ceval_suite.backends.lending import Lent
from ceval_suite.backends.shards import Peers, computed_in, in_shards
from ceval_suite.backends.undisturbed import undisturbed
from ceval_suite.errors import ModelError, UserError
from ceval_suite.model_spec import ModelSpec
from ceval_suite.schema import Reply, Request

SAMPLES = 64
"""Numbers of each weight that tell one state of a model from another."""

ALONE = 120.0
"""Seconds in which the first process must have met the trouble that another has met.

If it has not, it waits in the midst of a pass for one that will never come.
"""

T = TypeVar("T")


@dataclass
class AsLent:
    """Which weights a lent model has: nobody changes them until it is given back."""

    identity: dict[str, Any]

    def check(self) -> None:
        """Nothing can have changed."""


Opener = Callable[[ModelSpec, Say], Backend]


class LiveBackend(HFBackend):
    """The engine on a model that is being trained."""

    def __init__(
        self, model: Any, tokenizer: Any, spec: ModelSpec, say: Say, peers: Peers | None
    ) -> None:
        """`peers` are those that must compute every pass together; None where one may alone."""
        self._peers = peers
        whole, why = (model, "") if peers else _engine_model(model, tokenizer)
        attached = Attached(whole, plain=why)
        if isinstance(whole, Whole) and _prompts(model):
            attached.virtual_tokens = int(model.active_peft_config.num_virtual_tokens)
        computed = computed_in(model)
        about = {
            "name_or_path": spec.path,
            "live": True,
            "architecture": type(_inner(model)).__name__,
            "vocabulary": len(tokenizer),
            "versions": {"torch": torch.__version__},
            "parameters": weights.parameters(model),
        }
        longest = loading.max_length(model.config, tokenizer) - attached.virtual_tokens
        loaded = loading.Loaded(whole, tokenizer, computed, longest, about, attached)
        agreed = peers.agreed if peers else None
        lent = Lent(whole=peers is None, agreed=agreed, dtype=computed)
        super().__init__(spec, say, loaded, lent)

    # not inference mode: what a module keeps from a pass (FSDP's gathered weights, say) must be fit
    # for training afterwards
    @torch.no_grad()
    def ask(self, requests: Sequence[Request]) -> Iterator[Reply]:
        """As the engine's; where others compute in step, all replies come at the end."""
        if self._peers is None:
            yield from self.answers(requests)
            return
        self._peers.agreed(list(requests))
        # one that stops in the midst would leave the others waiting for ever
        yield from list(self.answers(requests))

    @torch.no_grad()
    def follow(self) -> None:
        """Compute what the first process asks, until it has no more."""
        assert self._peers is not None
        trouble = ""
        while True:
            # the first process meets the same trouble on the same pass, and says so
            with _met_by_all(trouble):
                requests = self._peers.agreed()
            if requests is None:
                return
            trouble = ""
            try:
                for _ in self.answers(requests):
                    pass
            except Exception:
                trouble = traceback.format_exc()  # the error itself would keep tensors alive


@contextmanager
def _met_by_all(trouble: str) -> Generator[None, None, None]:
    """Within it, the first process is waited for, ALONE seconds at most if there was trouble."""
    timer = threading.Timer(ALONE, _end, [trouble])
    timer.daemon = True
    if trouble:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _end(trouble: str) -> None:
    """End this process, whatever it waits for: torchrun then ends the job."""
    sys.stderr.write(f"{trouble}only this process met this; the others wait for it\n")
    sys.stderr.flush()
    os._exit(1)


def visit(
    model: Any,
    tokenizer: Any,
    spec: ModelSpec,
    say: Say,
    work: Callable[[AsLent, Opener], T],
) -> T:
    """Have `work` ask a model that is being trained; all its processes must call this together.

    `work` is called in the first process with what identifies the weights and what opens the
    model; what it returns, all processes return. Whatever happens, the model is left as it was.

    Raises:
        ModelError: weights that are not here.
        UserError: what `work` raises; raised in all processes.
    """
    model = bare(model)
    _check(model, tokenizer)
    with Peers.of_this_job() as peers, undisturbed(model):
        shards = in_shards(model)
        together = peers if shards else None
        tokenizer = copy.deepcopy(tokenizer)  # padding and truncation of the owner's stay his
        opened: list[LiveBackend] = []

        def opener(spec: ModelSpec, say: Say) -> Backend:
            opened.append(LiveBackend(model, tokenizer, spec, say, together))
            return opened[-1]

        try:
            one = peers.first or shards
            found = AsLent(identity(model, tokenizer, spec, together) if one else {})
            if peers.first:
                outcome: Any = _outcome(lambda: work(found, opener))
                if shards:
                    peers.agreed(None)
            else:
                outcome = None
                if shards:
                    opener(spec, say)
                    opened[0].follow()
            outcome = peers.agreed(outcome)
        finally:
            for backend in opened:
                backend.forward.give_back()
            opened.clear()
    _let_go()
    if outcome.error is not None:
        raise outcome.error
    return outcome.value


@dataclass
class _Outcome:
    value: Any = None
    error: Exception | None = None


def _outcome(work: Callable[[], Any]) -> _Outcome:
    """What comes of it, in a form that travels."""
    try:
        return _Outcome(work())
    except UserError as error:
        return _Outcome(error=error.with_traceback(None))
    except Exception as error:  # whatever it is, the other processes wait for an answer
        if not (dist.is_available() and dist.is_initialized()):
            raise
        return _Outcome(error=RuntimeError(f"{type(error).__name__}: {error}"))


def _let_go() -> None:
    gc.collect()
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def bare(model: Any) -> Any:
    """The model in what DDP, torch.compile or DeepSpeed have put around it."""
    wrapped = {"_orig_mod": "OptimizedModule", "module": "DeepSpeedEngine"}
    while True:
        if isinstance(model, torch.nn.parallel.DistributedDataParallel | torch.nn.DataParallel):
            model = model.module
            continue
        found = [key for key, kind in wrapped.items() if type(model).__name__ == kind]
        if not found:
            return model
        model = getattr(model, found[0])


def _inner(model: Any) -> Any:
    """What a peft model is put on."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _check(model: Any, tokenizer: Any) -> None:
    if not hasattr(model, "config") or not hasattr(model, "get_input_embeddings"):
        raise ModelError(
            f"{type(model).__name__} is no transformers model; give the model itself, not what "
            "holds it."
        )
    if not callable(getattr(tokenizer, "get_vocab", None)):
        raise ModelError("scoring needs the model's tokenizer; give it with the model.")
    parameters = list(model.parameters())
    if any(hasattr(weight, "ds_status") for weight in parameters):
        raise ModelError(
            "DeepSpeed ZeRO-3 holds weights in pieces that only its own engine puts together: a "
            "model in training cannot be scored under it; train with ZeRO-2 or FSDP, or score its "
            "checkpoints with 'ceval-suite watch'."
        )
    if any(weight.is_meta for weight in parameters):
        raise ModelError(
            "some weights are not here (on the meta device, or offloaded): the model cannot be "
            "scored as it stands; score its checkpoints with 'ceval-suite watch'."
        )
    if in_shards(model) and _prompts(model):
        raise ModelError(
            "an adapter that puts tokens before the prompt cannot be scored in shards; score its "
            "checkpoints with 'ceval-suite watch'."
        )
    rows = getattr(model.get_input_embeddings(), "num_embeddings", None)
    most = max(tokenizer.get_vocab().values(), default=0)
    if isinstance(rows, int) and most >= rows:
        raise ModelError(
            f"the tokenizer has a token {most} but the embedding only {rows} rows; give the "
            "tokenizer that belongs to this model."
        )


def _prompts(model: Any) -> bool:
    return bool(getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False))


@torch.no_grad()
def _engine_model(model: Any, tokenizer: Any) -> tuple[Any, str]:
    """The model whose passes the engine makes, and why they may not be packed if so."""
    if not hasattr(model, "get_base_model"):
        return model, ""
    if _prompts(model):
        return Whole(model), "an adapter puts tokens of its own before the prompt"
    inner = model.get_base_model()
    device = model.get_input_embeddings().weight.device
    ids = torch.tensor([tokenizer(adapter_proof.TEXT)["input_ids"]], device=device)
    if adapter_proof.far(adapter_proof.logits(inner, ids), adapter_proof.logits(model, ids)):
        return Whole(model), "the adapter needs peft's own forward pass"
    return inner, ""


def identity(
    model: Any, tokenizer: Any, spec: ModelSpec, peers: Peers | None = None
) -> dict[str, Any]:
    """What tells this state of a model from others: samples of every weight, and the tokenizer."""
    digest = hashlib.sha256()
    for name, weight in model.named_parameters():
        own = weight.detach()
        own = own.to_local() if hasattr(own, "to_local") else own
        digest.update(f"{name}\0{tuple(own.shape)}\0{own.dtype}\0".encode())
        if own.numel():
            flat = own.reshape(-1)
            places = np.linspace(0, flat.numel() - 1, min(SAMPLES, flat.numel())).astype(np.int64)
            some = flat[torch.as_tensor(places, device=flat.device)]
            some = some.double() if some.is_floating_point() else some.view(torch.uint8)
            digest.update(some.cpu().numpy().tobytes())
    found = digest.hexdigest()
    if peers is not None:
        found = hashlib.sha256("".join(peers.all(found)).encode()).hexdigest()
    core = getattr(tokenizer, "backend_tokenizer", None)
    written = core.to_str() if core is not None else json.dumps(tokenizer.get_vocab())
    return {
        "live_weights_sha256": found,
        "tokenizer_sha256": hashlib.sha256(written.encode()).hexdigest(),
        "dtype": str(computed_in(model)).removeprefix("torch."),
        "max_length": spec.max_length,
    }
