"""peft adapters on a model: one on top of the other, attached or merged, and proved to work."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from ceval_suite.backends import adapter_files, adapter_proof
from ceval_suite.backends.adapter_proof import Probe, apart, far, logits
from ceval_suite.backends.adapter_rows import grow, settle_tie, untie
from ceval_suite.backends.adapter_stack import Shape, Stacked, first_sentence, plan, quiet
from ceval_suite.errors import ModelError
from ceval_suite.model_spec import ModelSpec


@dataclass
class Attached:
    """A model with its adapters, and what each did to it.

    `plain` says why only the plain path is right, `virtual_tokens` how many tokens the adapter
    puts before a prompt; `probe` is what the adapters, attached, make of a text.
    """

    model: Any
    about: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    plain: str = ""
    virtual_tokens: int = 0
    probe: Probe | None = None

    @property
    def notes(self) -> list[str]:
        """What a person should hear."""
        return [one["note"] for one in self.about if one["note"]]


def attach(spec: ModelSpec, model: Any, tokenizer: Any) -> Attached:
    """The model with the spec's adapters, in their order.

    Raises:
        ModelError: an adapter that is not for this model, changes nothing, lacks or leaves over
            tensors, or cannot be merged where that is asked for.
    """
    if not spec.adapters:
        return Attached(model)
    peft = _peft()
    located = zip(spec.adapters, adapter_files.folders(spec), strict=True)
    found = [Stacked(one, path) for one, path in located]
    merges = plan(spec.path, found, _quantised(spec, model))
    stack = _Stack(peft, spec.path, model, tokenizer)
    for one, merge in zip(found, merges, strict=True):
        with torch.no_grad(), quiet():
            stack.add(one, merge)
    return stack.attached()


class _Stack:
    """A model that adapters are put on, one by one."""

    def __init__(self, peft: Any, base: str, model: Any, tokenizer: Any) -> None:
        self.lib = peft
        self.base = base
        self.out = Attached(model)
        self.tokenizer = tokenizer
        self.device = next(model.parameters()).device
        self.dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
        self.peft: Any = None  # what holds the adapters that stay attached
        self.names: list[str] = []

    def add(self, one: Stacked, merge: bool) -> None:
        """Attach one adapter, prove it, and merge it if asked to."""
        model = self.out.model
        note = adapter_proof.same_base(one, model, self.base)
        shapes = one.shapes()
        before = int(model.get_input_embeddings().weight.shape[0])
        rows = grow(model, shapes, one.config, str(one.path), self.base)
        # rows that were just added differ from what stood there by themselves: an adapter of more
        # than rows must change what the old ones say to each other
        tuned = one.kind != "TRAINABLE_TOKENS"
        old = self._ids(one, before) if tuned else self._ids(one, rows, before)
        ids = self._ids(one, rows, before)
        was = logits(model, old)
        whole = self._attach(one, shapes)
        new = adapter_proof.run(one, whole, ids)
        columns = slice(before if tuned else rows)
        change = far(logits(whole, old)[:, columns], was[:, columns])
        adapter_proof.changes(one, self.base, change, self.dtype)
        self.out.probe = Probe(ids, new, adapter_proof.tolerance(self.dtype))
        about = self._told(one, note, (before, rows), change)
        if merge:
            about |= self._merge(one, self.out.probe, change)
        else:
            self._keep(one, whole, ids)
        self.out.about.append({**about, "merged": merge})

    def attached(self) -> Attached:
        """All of it, in evaluation mode."""
        self.out.model = self.out.model.eval().requires_grad_(False)
        return self.out

    def _ids(self, one: Stacked, rows: int, before: int | None = None) -> torch.Tensor:
        added = range(rows if before is None else before, rows)
        ids = adapter_proof.probe_ids(self.tokenizer, one, rows, added)
        return torch.tensor(ids, device=self.device)

    def _attach(self, one: Stacked, shapes: dict[str, Shape]) -> Any:
        """peft's model with the adapter, and with those that are attached already."""
        model = self.out.model
        pair = bool(getattr(model.config, "is_encoder_decoder", False))
        if pair and one.prompts:
            raise ModelError(
                f"{one.path}: {one.kind} on a model with an encoder and a decoder cannot be "
                "scored; use a LoRA adapter."
            )
        kind = self.lib.PeftModelForSeq2SeqLM if pair else self.lib.PeftModelForCausalLM
        name = f"adapter{len(self.names)}" if self.names else "default"
        whole: Any = None if one.prompts else self.peft
        try:
            whole = whole or kind(model, one.config, adapter_name=name)
            found = whole.load_adapter(str(one.path), name, torch_device=str(self.device))
        except Exception as error:  # peft raises anything here
            raise adapter_proof.refused(one, self.base, error) from error
        adapter_proof.all_loaded(one, whole, found, model, self.base, shapes)
        if not one.prompts:
            self.names.append(name)
            self.peft = whole
            self._activate(name)
        return whole.eval()

    def _activate(self, name: str) -> None:
        """All adapters at once, and full copies of modules in the place of peft's wrappers."""
        from peft.tuners.tuners_utils import BaseTunerLayer
        from peft.utils import ModulesToSaveWrapper

        inner = self.peft.get_base_model()
        for path, module in list(inner.named_modules()):
            if isinstance(module, BaseTunerLayer) and len(self.names) > 1:
                module.set_adapter(list(self.names))
            if isinstance(module, ModulesToSaveWrapper) and name in module.modules_to_save:
                parent, _, last = path.rpartition(".")
                setattr(inner.get_submodule(parent), last, module.modules_to_save[name])
        settle_tie(inner)

    def _merge(self, one: Stacked, probe: Probe, change: float) -> dict[str, Any]:
        """Merge what is attached, and compare."""
        untie(self.out.model)
        try:
            model = self.peft.merge_and_unload(safe_merge=True)
        except Exception as error:  # peft raises anything here
            raise ModelError(
                f"{one.path}: {one.word} cannot be merged ({first_sentence(error)}); set merge: "
                "false."
            ) from error
        away = apart(logits(model, probe.ids), probe.logits)
        left = any(_of_peft(module) for module in model.modules())
        if left or not away <= min(probe.tolerance, change):
            raise ModelError(
                f"{one.path}: merged, it differs from the attached adapter by {away:.2g} in "
                f"log-probability, where {probe.tolerance:g} is tolerated and the adapter itself "
                f"changes {change:.2g}; set merge: false, or --dtype float32."
            )
        self.out.model, self.peft, self.names = model, None, []
        return {"merge_difference": away, "tolerance": probe.tolerance}

    def _keep(self, one: Stacked, whole: Any, ids: torch.Tensor) -> None:
        """What the engine is given while an adapter stays attached."""
        inner = whole.get_base_model()
        if one.prompts:
            number = int(one.config.num_virtual_tokens)
            self.out.virtual_tokens = number
            self.out.plain = f"{one.kind} puts {number} tokens of its own before the prompt"
        elif one.invoked or far(logits(inner, ids), logits(whole, ids)):
            self.out.plain = f"{one.word} needs peft's own forward pass"
        self.out.model = Whole(whole) if self.out.plain else inner

    def _told(
        self, one: Stacked, note: str, rows: tuple[int, int], change: float
    ) -> dict[str, Any]:
        from peft.tuners.tuners_utils import BaseTunerLayer

        inside = [] if one.prompts else self.peft.modules()
        return {
            "path": str(one.path),
            "kind": one.word,
            "rslora": bool(getattr(one.config, "use_rslora", False)),
            "base": one.base,
            "modules": sum(isinstance(module, BaseTunerLayer) for module in inside),
            "modules_to_save": sorted(getattr(one.config, "modules_to_save", None) or []),
            "virtual_tokens": int(one.config.num_virtual_tokens) if one.prompts else 0,
            "rows": {"before": rows[0], "after": rows[1]},
            "probe_change": change,
            "note": note,
        }


class Whole(torch.nn.Module):
    """peft's own forward pass in the form of a model: the logits of the given tokens alone."""

    def __init__(self, whole: Any) -> None:
        super().__init__()
        self.whole = whole

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.whole.get_base_model(), name)

    def forward(self, input_ids: torch.Tensor, logits_to_keep: Any = None, **options: Any) -> Any:
        """As the base's: ids [1, T] → logits [1, T, V], or those of the positions to keep."""
        out = self.whole(input_ids=input_ids, **options)
        # tokens put before the prompt have logits too
        out.logits = out.logits[:, -input_ids.shape[1] :]
        if logits_to_keep is not None:
            out.logits = out.logits[:, logits_to_keep]
        return out


def _of_peft(module: Any) -> bool:
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import AuxiliaryTrainingWrapper

    return isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper)


def _quantised(spec: ModelSpec, model: Any) -> bool:
    if spec.path.endswith(".gguf"):  # transformers turns its blocks into plain weights
        return spec.quant is not None
    own = getattr(model.config, "quantization_config", None)
    return bool(spec.quant or getattr(model, "is_quantized", False) or own)


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise ModelError(
            "adapters need the package peft, which is not installed; run pip install "
            "'ceval-suite[lora]'."
        ) from error
    return peft
