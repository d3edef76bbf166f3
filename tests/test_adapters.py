"""Adapters score as peft by hand, merged or not; one that is not what it seems to be stops."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from ceval_suite import cli
from ceval_suite.backends import adapters, loading, merging, open_backend, sources
from ceval_suite.backends.adapter_stack import Stacked, plan
from ceval_suite.backends.hf import HFBackend
from ceval_suite.backends.tokenizers import load_tokenizer
from ceval_suite.errors import ModelError, PromptError, RunError
from ceval_suite.model_spec import Adapter, ModelSpec, Quant
from ceval_suite.prepare import Selection, prepare
from ceval_suite.run import evaluate
from ceval_suite.schema import Request

pytestmark = pytest.mark.usefixtures("one_thread")

DTYPES = {"float32": 1e-4, "bfloat16": 0.15}
"""How far a log-probability may be from the oracle's, computed in the same dtype."""

PAD = 100
ADDED = 10
LETTERS = (" A", " B", " C", " D")
CONTEXTS = (
    "Which number is prime?\nA. 12\nB. 7\nC. 9\nD. 8\nAnswer:",
    "Which number is prime?\nA. 15\nB. 4\nC. 11\nD. 6\nAnswer:",
    "下列哪个城市是中国的首都？\nA. 上海\nB. 北京\nC. 广州\nD. 深圳\n答案：",
)
NEW = "<t1> 新词 <t7>：下列哪一项正确？\nA. 是\nB. 否\n答案："
"""A question with tokens that only an extended tokenizer has."""

Shop = Any


@contextmanager
def hushed() -> Iterator[None]:
    """peft and torchao warn of what these tests do on purpose."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


with hushed():
    import peft
    from peft import LoraConfig, PeftModel, get_peft_model


def lora(**options: Any) -> LoraConfig:
    targets = options.pop("targets", ["q_proj", "v_proj", "down_proj"])
    return LoraConfig(task_type="CAUSAL_LM", target_modules=targets, r=4, **options)


class Workshop:
    """Makes bases and adapters on them as people do: with transformers and peft, by hand."""

    def __init__(self, root: Path, tokenizer: Any) -> None:
        self.root = root
        self.tokenizer = tokenizer
        self._made: dict[str, Path] = {}

    def base(self, name: str = "base", pad: int = 0, **shape: Any) -> Path:
        from transformers import LlamaConfig, LlamaForCausalLM

        if name not in self._made:
            torch.manual_seed(0)
            options: dict[str, Any] = {"num_hidden_layers": 2, "hidden_size": 64, **shape}
            config = LlamaConfig(
                vocab_size=len(self.tokenizer) + pad,
                intermediate_size=128,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=2048,
                initializer_range=0.1,
                **options,
            )
            folder = self.root / name
            LlamaForCausalLM(config).save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)
            self._made[name] = folder
        return self._made[name]

    def adapter(
        self,
        name: str,
        base: Path,
        config: Any,
        *,
        added: int = 0,
        under: Sequence[Path] = (),
        scale: float = 0.1,
    ) -> Path:
        """An adapter whose trained tensors are random; with `added` tokens and their tokenizer."""
        if name in self._made:
            return self._made[name]
        with hushed():
            model = self.load(base, under)
            if under:
                model = model.merge_and_unload()
            if added:
                rows = model.get_input_embeddings().weight.shape[0]
                model.resize_token_embeddings(rows + added)
            torch.manual_seed(len(self._made))
            whole = get_peft_model(model, copy.deepcopy(config))
            for parameter in whole.parameters():
                if parameter.requires_grad:
                    parameter.data += torch.randn_like(parameter) * scale
            folder = self.root / name
            whole.save_pretrained(folder)
        if added:
            self.extended(added).save_pretrained(folder)
        self._made[name] = folder
        return folder

    def extended(self, added: int) -> Any:
        tokenizer = copy.deepcopy(self.tokenizer)
        tokenizer.add_tokens([f"<t{i}>" for i in range(added)])
        return tokenizer

    def load(self, base: Path, under: Sequence[Path] = (), dtype: str = "float32") -> Any:
        """The oracle's model: adapters by hand, the last attached and those below it merged."""
        from transformers import AutoModelForCausalLM

        with hushed():
            model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, dtype))
            for number, folder in enumerate(under):
                rows = embedding_rows(folder)
                if rows:
                    model.resize_token_embeddings(rows, mean_resizing=False)
                model = PeftModel.from_pretrained(model, folder)
                if number < len(under) - 1:
                    model = model.merge_and_unload()
        return model.eval()


def embedding_rows(folder: Path) -> int:
    from safetensors import safe_open

    with safe_open(folder / "adapter_model.safetensors", "pt") as stream:
        names = [k for k in stream.keys() if k.endswith("embed_tokens.weight")]  # noqa: SIM118
        return stream.get_slice(names[0]).get_shape()[0] if names else 0


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("adapters"), tiny_tokenizer)


@torch.no_grad()
def by_hand(model: Any, tokenizer: Any, contexts: Sequence[str]) -> list[list[float]]:
    """Log-probabilities of the letters: one row at a time through the model as it stands."""
    out: list[list[float]] = []
    head = model.get_output_embeddings()
    seen: list[torch.Tensor] = []
    hook = head.register_forward_hook(lambda _m, given, _out: seen.append(given[0]))
    for context in contexts:
        ids = tokenizer(context)["input_ids"]
        rows = [tokenizer(context + letter)["input_ids"] for letter in LETTERS]
        assert all(row[:-1] == ids for row in rows), "letters are single tokens"
        logits = model(input_ids=torch.tensor([ids])).logits[0, -1]
        if type(head) is torch.nn.Linear:  # as the engine does: the head in float32
            logits = torch.nn.functional.linear(seen[-1][0, -1].float(), head.weight.float())
        scores = logits.float().log_softmax(-1)
        out.append([float(scores[row[-1]]) for row in rows])
    hook.remove()
    return out


def opened(base: Path, under: Sequence[Path | Adapter] = (), **options: Any) -> HFBackend:
    listed = [one if isinstance(one, Adapter) else Adapter(path=str(one)) for one in under]
    backend = open_backend(ModelSpec(path=str(base), adapters=listed, device="cpu", **options))
    assert isinstance(backend, HFBackend)
    return backend


def scored(backend: HFBackend, contexts: Sequence[str]) -> list[list[float]]:
    asked = [
        Request(id=str(i), context=context, continuations=LETTERS)
        for i, context in enumerate(contexts)
    ]
    found = {reply.id: list(reply.logprobs) for reply in backend.ask(asked)}
    return [found[request.id] for request in asked]


def difference(a: list[list[float]], b: list[list[float]]) -> float:
    return float((torch.tensor(a) - torch.tensor(b)).abs().max())


def proof(backend: HFBackend) -> list[dict[str, Any]]:
    return backend.describe()["adapters_applied"]


# the matrix: what is loaded → base, adapters, and words of its tokenizer


def cell_base(shop: Shop) -> tuple[Path, list[Path]]:
    return shop.base(), []


def cell_lora(shop: Shop) -> tuple[Path, list[Path]]:
    return shop.base(), [shop.adapter("lora", shop.base(), lora())]


def cell_stacked(shop: Shop) -> tuple[Path, list[Path]]:
    first = shop.adapter("lora", shop.base(), lora())
    return shop.base(), [first, shop.adapter("sft", shop.base(), lora(), under=[first])]


def cell_added(shop: Shop) -> tuple[Path, list[Path]]:
    config = lora(modules_to_save=["embed_tokens", "lm_head"])
    return shop.base(), [shop.adapter("added", shop.base(), config, added=ADDED)]


def cell_stack_on_added(shop: Shop) -> tuple[Path, list[Path]]:
    base, first = cell_added(shop)
    return base, [*first, shop.adapter("sft-added", base, lora(), under=first)]


def cell_padded(shop: Shop) -> tuple[Path, list[Path]]:
    base = shop.base("padded", pad=PAD)
    return base, [shop.adapter("padded-lora", base, lora())]


def cell_padded_embeddings(shop: Shop) -> tuple[Path, list[Path]]:
    base = shop.base("padded", pad=PAD)
    config = lora(modules_to_save=["embed_tokens", "lm_head"])
    return base, [shop.adapter("padded-embeddings", base, config)]


def cell_dora(shop: Shop) -> tuple[Path, list[Path]]:
    return shop.base(), [shop.adapter("dora", shop.base(), lora(use_dora=True))]


def cell_rslora(shop: Shop) -> tuple[Path, list[Path]]:
    return shop.base(), [shop.adapter("rslora", shop.base(), lora(use_rslora=True))]


def cell_tied_head(shop: Shop) -> tuple[Path, list[Path]]:
    base = shop.base("tied", tie_word_embeddings=True)
    return base, [shop.adapter("tied-head", base, lora(targets=["q_proj", "lm_head"]))]


def cell_tied_embedding(shop: Shop) -> tuple[Path, list[Path]]:
    base = shop.base("tied", tie_word_embeddings=True)
    return base, [shop.adapter("tied-embed", base, lora(modules_to_save=["embed_tokens"]))]


def cell_tied_tokens(shop: Shop) -> tuple[Path, list[Path]]:
    base = shop.base("tied", tie_word_embeddings=True)
    return base, [shop.adapter("tied-tokens", base, lora(trainable_token_indices=[40, 41, 42]))]


MATRIX = {
    "base": cell_base,
    "LoRA": cell_lora,
    "stacked LoRA": cell_stacked,
    "LoRA with added tokens": cell_added,
    "LoRA on LoRA with added tokens": cell_stack_on_added,
    "padded base and LoRA": cell_padded,
    "padded base and LoRA with embeddings": cell_padded_embeddings,
    "DoRA": cell_dora,
    "rsLoRA": cell_rslora,
    "tied base, LoRA on the head": cell_tied_head,
    "tied base, embedding of its own": cell_tied_embedding,
    "tied base, trained tokens": cell_tied_tokens,
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", MATRIX)
def test_each_kind_of_checkpoint_scores_as_peft_by_hand(
    name: str, dtype: str, shop: Workshop
) -> None:
    base, under = MATRIX[name](shop)
    added = "added tokens" in name
    tokenizer = shop.extended(ADDED) if added else shop.tokenizer
    contexts = [*CONTEXTS, *([NEW] if added else [])]
    oracle = by_hand(shop.load(base, under, dtype), tokenizer, contexts)

    backend = opened(base, under, dtype=dtype)
    assert difference(scored(backend, contexts), oracle) <= DTYPES[dtype]
    assert backend.path["attention"] == "packed"
    assert [one["merged"] for one in proof(backend)] == [True] * len(under)
    assert all(type(m).__module__.split(".")[0] != "peft" for m in backend.model.modules())
    assert len(backend.loaded.tokenizer) == len(tokenizer)
    if under:  # or else the oracle could not tell
        plain = by_hand(shop.load(base, [], dtype), shop.tokenizer, CONTEXTS)
        assert difference(plain, oracle[: len(CONTEXTS)]) > 2 * DTYPES[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [name for name in MATRIX if name != "base"])
def test_each_kind_scores_the_same_with_the_last_adapter_attached(
    name: str, dtype: str, shop: Workshop
) -> None:
    base, under = MATRIX[name](shop)
    oracle = by_hand(
        shop.load(base, under, dtype),
        shop.extended(ADDED) if "added tokens" in name else shop.tokenizer,
        CONTEXTS,
    )
    last = Adapter(path=str(under[-1]), merge=False)
    backend = opened(base, [*under[:-1], last], dtype=dtype)
    assert difference(scored(backend, CONTEXTS), oracle) <= DTYPES[dtype]
    assert not proof(backend)[-1]["merged"]


def test_a_stack_of_loras_that_all_stay_attached_scores_as_the_merged_one(shop: Workshop) -> None:
    base, under = cell_stacked(shop)
    backend = opened(base, [Adapter(path=str(one), merge=False) for one in under])
    oracle = by_hand(shop.load(base, under), shop.tokenizer, CONTEXTS)
    assert difference(scored(backend, CONTEXTS), oracle) <= DTYPES["float32"]
    assert [one["merged"] for one in proof(backend)] == [False, False]
    assert backend.path["attention"] == "packed"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["stacked LoRA", "LoRA with added tokens", "DoRA"])
def test_a_checkpoint_that_peft_merged_on_disk_scores_as_the_adapter(
    name: str, dtype: str, shop: Workshop, tmp_path: Path
) -> None:
    base, under = MATRIX[name](shop)
    tokenizer = shop.extended(ADDED) if "added tokens" in name else shop.tokenizer
    whole = shop.load(base, under, dtype)
    oracle = by_hand(whole, tokenizer, CONTEXTS)
    with hushed():
        whole.merge_and_unload().save_pretrained(tmp_path / "merged")
    tokenizer.save_pretrained(tmp_path / "merged")
    found = scored(opened(tmp_path / "merged", dtype=dtype), CONTEXTS)
    assert difference(found, oracle) <= DTYPES[dtype]


def test_a_lora_on_a_model_with_encoder_and_decoder_scores_as_merged_by_peft(
    shop: Workshop, tmp_path: Path
) -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    config = T5Config(
        vocab_size=len(shop.tokenizer),
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=0,
    )
    base, folder, merged = (tmp_path / name for name in ("base", "adapter", "merged"))
    T5ForConditionalGeneration(config).save_pretrained(base)
    with hushed():
        tuned = LoraConfig(task_type="SEQ_2_SEQ_LM", target_modules=["q", "v", "wo"], r=4)
        whole: Any = get_peft_model(T5ForConditionalGeneration.from_pretrained(base), tuned)
        for parameter in whole.parameters():
            if parameter.requires_grad:
                parameter.data += torch.randn_like(parameter) * 0.3
        whole.save_pretrained(folder)
        whole.merge_and_unload().save_pretrained(merged)
    for path in (base, merged):
        shop.tokenizer.save_pretrained(path)
    plain, oracle = scored(opened(base), CONTEXTS), scored(opened(merged), CONTEXTS)
    assert difference(plain, oracle) > 0.01
    for merge in (True, False):
        backend = opened(base, [Adapter(path=str(folder), merge=merge)])
        assert difference(scored(backend, CONTEXTS), oracle) <= DTYPES["float32"]


# the five cases that a well-known harness cannot load, or loads wrongly


def test_an_adapter_with_added_tokens_needs_no_tokenizer_named(shop: Workshop) -> None:
    base, under = cell_added(shop)
    rows = len(shop.tokenizer) + ADDED
    backend = opened(base, under)
    assert backend.describe()["embedding_rows"] == backend.describe()["vocabulary"] == rows
    assert proof(backend)[0]["rows"] == {"before": rows - ADDED, "after": rows}


def test_an_adapter_with_added_tokens_and_its_tokenizer_named(shop: Workshop) -> None:
    base, under = cell_added(shop)
    found = scored(opened(base, under, tokenizer=str(under[0])), [NEW])
    oracle = by_hand(shop.load(base, under), shop.extended(ADDED), [NEW])
    assert difference(found, oracle) <= DTYPES["float32"]


def test_a_padded_base_with_a_plain_lora_is_not_shrunk(shop: Workshop) -> None:
    described = opened(*cell_padded(shop)).describe()
    assert described["embedding_rows"] == described["vocabulary"] + PAD


def test_a_padded_base_with_embeddings_and_head_in_the_adapter_loads_whole(shop: Workshop) -> None:
    backend = opened(*cell_padded_embeddings(shop))
    described = backend.describe()
    assert described["embedding_rows"] == described["vocabulary"] + PAD
    assert proof(backend)[0]["modules_to_save"] == ["embed_tokens", "lm_head"]


def test_the_directory_of_an_adapter_can_be_given_as_the_model(shop: Workshop) -> None:
    base, under = cell_lora(shop)
    oracle = by_hand(shop.load(base, under), shop.tokenizer, CONTEXTS)
    alone = opened(under[0])
    assert difference(scored(alone, CONTEXTS), oracle) <= DTYPES["float32"]
    spec = ModelSpec(path=str(under[0]))
    both = ModelSpec(path=str(base), adapters=[Adapter(path=str(under[0]))])
    assert sources.resolve(spec) == base
    one, other = (sources.identity(s, sources.resolve(s)) for s in (spec, both))
    assert one == other


# other kinds of peft: attached, and on the plain path where they need it

KINDS: dict[str, tuple[Any, bool]] = {
    "PROMPT_TUNING": (peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=7), False),
    "PREFIX_TUNING": (peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=7), False),
    "P_TUNING": (
        peft.PromptEncoderConfig(
            task_type="CAUSAL_LM", num_virtual_tokens=7, encoder_hidden_size=32
        ),
        False,
    ),
    "IA3": (
        peft.IA3Config(
            task_type="CAUSAL_LM",
            target_modules=["k_proj", "v_proj", "down_proj"],
            feedforward_modules=["down_proj"],
        ),
        True,
    ),
    "LOHA": (peft.LoHaConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]), True),
    "LN_TUNING": (
        peft.LNTuningConfig(task_type="CAUSAL_LM", target_modules=["input_layernorm"]),
        True,
    ),
    "ADAPTION_PROMPT": (
        peft.AdaptionPromptConfig(task_type="CAUSAL_LM", adapter_len=4, adapter_layers=2),
        True,
    ),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_other_kinds_of_peft_score_as_by_hand(kind: str, dtype: str, shop: Workshop) -> None:
    config, packs = KINDS[kind]
    folder = shop.adapter(kind, shop.base(), config, scale=0.5)
    oracle = by_hand(shop.load(shop.base(), [folder], dtype), shop.tokenizer, CONTEXTS)
    plain = by_hand(shop.load(shop.base(), [], dtype), shop.tokenizer, CONTEXTS)
    assert difference(plain, oracle) > 2 * DTYPES[dtype]

    backend = opened(shop.base(), [folder], dtype=dtype)
    assert difference(scored(backend, CONTEXTS), oracle) <= DTYPES[dtype]
    assert proof(backend)[0]["kind"] == kind
    assert not proof(backend)[0]["merged"]
    assert (backend.path["attention"] == "packed") == packs


def test_tokens_that_an_adapter_puts_before_the_prompt_leave_it_less_room(shop: Workshop) -> None:
    folder = shop.adapter("PROMPT_TUNING", shop.base(), KINDS["PROMPT_TUNING"][0], scale=0.5)
    assert opened(shop.base(), [folder]).max_length == 2048 - 7
    short = opened(shop.base(), [folder], max_length=40)
    assert short.max_length == 33
    with pytest.raises(PromptError, match="33"):
        scored(short, CONTEXTS)


def test_a_prompt_on_top_of_a_merged_lora_scores_as_by_hand(shop: Workshop) -> None:
    base, under = cell_lora(shop)
    config = KINDS["PREFIX_TUNING"][0]
    stack = [*under, shop.adapter("prefix-on-lora", base, config, under=under, scale=0.5)]
    oracle = by_hand(shop.load(base, stack), shop.tokenizer, CONTEXTS)
    for merge in (None, False):
        backend = opened(base, [Adapter(path=str(stack[0]), merge=merge), stack[1]])
        assert difference(scored(backend, CONTEXTS), oracle) <= DTYPES["float32"]
        assert backend.path["reason"] == "PREFIX_TUNING puts 7 tokens of its own before the prompt"


def test_other_kinds_are_merged_when_asked_to(shop: Workshop) -> None:
    folder = shop.adapter("IA3", shop.base(), KINDS["IA3"][0], scale=0.5)
    oracle = by_hand(shop.load(shop.base(), [folder]), shop.tokenizer, CONTEXTS)
    backend = opened(shop.base(), [Adapter(path=str(folder), merge=True)])
    assert difference(scored(backend, CONTEXTS), oracle) <= DTYPES["float32"]
    assert proof(backend)[0]["merged"]


# proof and identity


def test_the_proof_says_what_the_adapter_is_and_does(shop: Workshop) -> None:
    base, under = cell_added(shop)
    (said,) = proof(opened(base, under))
    assert (said["kind"], said["modules"], said["merged"]) == ("LORA", 6, True)
    assert said["probe_change"] > 0.1
    assert said["merge_difference"] <= said["tolerance"] == 1e-3
    assert said["note"] == ""


def test_an_adapter_that_names_a_base_elsewhere_is_put_on_one_that_fits_and_says_so(
    shop: Workshop, tmp_path: Path
) -> None:
    base, under = cell_lora(shop)
    moved = Path(shutil.copytree(base, tmp_path / "moved"))
    heard: list[str] = []
    spec = ModelSpec(path=str(moved), adapters=[Adapter(path=str(under[0]))], device="cpu")
    open_backend(spec, heard.append)
    assert heard == [
        f"{under[0]} names {base} as its base and is put on {moved}, whose shapes it fits"
    ]


def test_adapters_their_order_and_merging_are_part_of_a_models_identity(shop: Workshop) -> None:
    base, (first, second) = cell_stacked(shop)

    def identity(*under: Adapter) -> str:
        spec = ModelSpec(path=str(base), adapters=list(under))
        return json.dumps(sources.identity(spec, base))

    one, two = Adapter(path=str(first)), Adapter(path=str(second))
    attached = Adapter(path=str(second), merge=False)
    found = [identity(), identity(one), identity(one, two), identity(two, one)]
    found.append(identity(one, attached))
    assert len(set(found)) == len(found)
    assert identity(one, two) == found[2]


def test_identity_knows_an_adapter_by_its_bytes_not_its_place(
    shop: Workshop, tmp_path: Path
) -> None:
    base, (folder,) = cell_lora(shop)
    copied = Path(shutil.copytree(folder, tmp_path / "copy"))

    def identity(path: Path) -> Any:
        return sources.identity(ModelSpec(path=str(base), adapters=[Adapter(path=str(path))]), base)

    assert identity(copied) == identity(folder)
    change(copied, lambda content: next(iter(content.values())).add_(1e-3))
    assert identity(copied) != identity(folder)


def test_the_tokenizer_of_the_adapter_is_part_of_the_identity(shop: Workshop) -> None:
    base, under = cell_added(shop)
    plain = sources.identity(ModelSpec(path=str(base)), base)["tokenizer_sha256"]
    spec = ModelSpec(path=str(base), adapters=[Adapter(path=str(under[0]))])
    assert sources.identity(spec, base)["tokenizer_sha256"] != plain
    assert len(load_tokenizer(spec)) == len(shop.tokenizer) + ADDED


def test_a_finished_run_is_not_reused_for_the_model_with_other_adapters(
    shop: Workshop, tmp_path: Path
) -> None:
    base, (first, second) = cell_stacked(shop)
    task = [prepare("sample-ceval", Selection("official", shots=0, limit=1))]

    def run(*under: Path) -> dict[str, Any]:
        listed = [Adapter(path=str(path)) for path in under]
        spec = ModelSpec(path=str(base), adapters=listed, device="cpu")
        (folder,) = evaluate("model", spec, task, tmp_path)
        return json.loads((folder / "run.json").read_text())

    about = run(first, second)
    assert len(about["engine"]["adapters_applied"]) == len(about["identity"]["adapters"]) == 2
    assert run(first, second) == about
    for other in ([first], []):
        with pytest.raises(RunError, match="another adapters"):
            run(*other)


# what is refused


def refused(base: Path, *under: Path | Adapter, **options: Any) -> str:
    """The sentence with which adapters are refused."""
    listed = [one if isinstance(one, Adapter) else Adapter(path=str(one)) for one in under]
    with pytest.raises(ModelError) as caught:
        loading.load(ModelSpec(path=str(base), adapters=listed, device="cpu", **options))
    said = str(caught.value)
    assert "\n" not in said
    assert said.endswith(".")
    assert said.count(". ") == 0, "one sentence"
    return said


def change(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    from safetensors.torch import load_file, save_file

    content = load_file(folder / "adapter_model.safetensors")
    edit(content)
    save_file(content, folder / "adapter_model.safetensors", {"format": "pt"})


def settings(folder: Path, **changes: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.fixture
def broken(shop: Workshop, tmp_path: Path) -> Path:
    """A whole LoRA adapter to break."""
    (folder,) = cell_lora(shop)[1]
    return Path(shutil.copytree(folder, tmp_path / "adapter"))


def test_an_adapter_that_changes_nothing(shop: Workshop) -> None:
    # as initialised, a LoRA's second factor is zero
    folder = shop.adapter("untrained", shop.base(), lora(), scale=0.0)
    said = refused(shop.base(), folder)
    assert said.startswith(f"{folder}: the adapter changes no logit of {shop.base()} (in float32)")


def test_added_tokens_do_not_hide_that_the_rest_of_an_adapter_changes_nothing(
    shop: Workshop,
) -> None:
    folder = shop.adapter("untrained-added", shop.base(), lora(), added=ADDED, scale=0.0)
    assert embedding_rows(folder) == len(shop.tokenizer) + ADDED
    assert "changes no logit" in refused(shop.base(), folder)


def test_an_adapter_for_a_wider_base_names_both(shop: Workshop) -> None:
    wide = shop.base("wide", hidden_size=96)
    folder = shop.adapter("wide-lora", wide, lora())
    said = refused(shop.base(), folder)
    assert said == (
        f"{folder}: the adapter was made for {wide}, whose hidden_size is 96, and {shop.base()} "
        "has 64; give the base it was trained on."
    )


def test_an_adapter_whose_shapes_do_not_fit_names_both(shop: Workshop, tmp_path: Path) -> None:
    wide = shop.base("wide", hidden_size=96)
    folder = shutil.copytree(shop.adapter("wide-lora", wide, lora()), tmp_path / "adapter")
    settings(folder, base_model_name_or_path="someone/wide")
    said = refused(shop.base(), folder)
    assert said.startswith(
        f"{folder}: the adapter (of someone/wide) cannot be put on {shop.base()}"
    )
    assert "where that needs (4, 64)" in said or "where that needs (64, 4)" in said


def test_an_adapter_with_more_layers_than_the_base(shop: Workshop, tmp_path: Path) -> None:
    deep = shop.base("deep", num_hidden_layers=3)
    folder = shutil.copytree(shop.adapter("deep-lora", deep, lora()), tmp_path / "adapter")
    settings(folder, base_model_name_or_path="someone/deep")
    said = refused(shop.base(), folder)
    assert "(of someone/deep) has 6 tensors that have no place" in said
    assert "layers.2" in said


def test_an_adapter_with_fewer_layers_than_the_base(shop: Workshop, broken: Path) -> None:
    settings(broken, base_model_name_or_path="someone/shallow")
    said = refused(shop.base("deep", num_hidden_layers=3), broken)
    assert "(of someone/shallow) lacks 6 of the tensors" in said
    assert "layers.2" in said


def test_an_adapter_of_another_architecture(shop: Workshop, broken: Path) -> None:
    settings(broken, target_modules=["c_attn"], base_model_name_or_path="someone/gpt")
    said = refused(shop.base(), broken)
    assert "someone/gpt" in said
    assert "c_attn" in said
    mapping = {"base_model_class": "GPT2LMHeadModel", "parent_library": "transformers"}
    settings(broken, auto_mapping={**mapping, "base_model_class": "QwenForCausalLM"})
    assert f"a QwenForCausalLM, and {shop.base()} is a LlamaForCausalLM" in refused(
        shop.base(), broken
    )


def test_a_tensor_of_the_adapter_is_missing(shop: Workshop, broken: Path) -> None:
    # peft leaves it as initialised, and says so in a warning that nobody reads
    name = "base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight"
    change(broken, lambda content: content.pop(name))
    said = refused(shop.base(), broken)
    assert "lacks 1 of the tensors" in said
    assert "layers.1.self_attn.v_proj.lora_B" in said


def test_a_whole_module_of_the_adapter_is_missing(shop: Workshop, tmp_path: Path) -> None:
    base, under = cell_padded_embeddings(shop)
    folder = Path(shutil.copytree(under[0], tmp_path / "adapter"))
    change(folder, lambda content: content.pop("base_model.model.lm_head.weight"))
    assert "its tensor base_model.model.lm_head.weight is missing" in refused(base, folder)


def test_a_tensor_of_the_adapter_has_no_place(shop: Workshop, broken: Path) -> None:
    # peft does not say at all
    name = "base_model.model.model.layers.1.self_attn.o_proj.lora_B.weight"
    change(broken, lambda content: content.update({name: torch.ones(64, 4)}))
    said = refused(shop.base(), broken)
    assert "has 1 tensors that have no place" in said
    assert name in said


def test_an_adapter_with_fewer_rows_than_the_base_is_not_cut_to(shop: Workshop) -> None:
    _, under = cell_added(shop)
    rows = len(shop.tokenizer)
    padded = shop.base("padded", pad=PAD)
    said = refused(padded, under[0])
    assert f"its embedding has {rows + ADDED} rows and that of {padded} has {rows + PAD}" in said


def test_added_tokens_without_rows_of_the_head(shop: Workshop, tmp_path: Path) -> None:
    base, under = cell_added(shop)
    folder = Path(shutil.copytree(under[0], tmp_path / "adapter"))
    settings(folder, modules_to_save=["embed_tokens"])

    def headless(content: dict[str, Any]) -> None:
        for name in [name for name in content if "lm_head" in name]:
            content.pop(name)

    change(folder, headless)
    assert "brings no rows of the head" in refused(base, folder)


def test_merging_into_quantised_weights(shop: Workshop) -> None:
    base, under = cell_lora(shop)
    spec = ModelSpec(
        path=str(base),
        adapters=[Adapter(path=str(under[0]), merge=True)],
        quant=Quant(method="bitsandbytes", bits=4, type="nf4"),
    )
    with pytest.raises(ModelError) as caught:
        adapters.attach(spec, shop.load(base), shop.tokenizer)
    said = str(caught.value)
    assert said.startswith(f"{under[0]}: merging into the quantised weights of {base}")
    assert "merge: false" in said
    assert "model merge" in said
    unsaid = spec.model_copy(update={"adapters": [Adapter(path=str(under[0]))]})
    found = adapters.attach(unsaid, shop.load(base), shop.tokenizer)
    assert [one["merged"] for one in found.about] == [False]


def test_which_adapters_are_merged_is_planned_before_any_is(shop: Workshop) -> None:
    base, (first, second) = cell_stacked(shop)
    dora = cell_dora(shop)[1][0]
    ia3 = shop.adapter("IA3", base, KINDS["IA3"][0], scale=0.5)
    prompt = shop.adapter("PROMPT_TUNING", base, KINDS["PROMPT_TUNING"][0], scale=0.5)

    def planned(*under: tuple[Path, bool | None], quantised: bool = False) -> list[bool]:
        found = [Stacked(Adapter(path=str(p), merge=merge), p) for p, merge in under]
        return plan("base", found, quantised)

    assert planned((first, None), (second, None)) == [True, True]
    assert planned((first, None), (second, False)) == [True, False]
    assert planned((first, False), (second, None)) == [False, False]
    assert planned((first, None), (prompt, None)) == [True, False]
    assert planned((ia3, None)) == [False]
    assert planned((ia3, None), (first, None)) == [True, True]
    assert planned((first, None), (second, None), quantised=True) == [False, False]
    for under, word in (
        (((prompt, None), (first, None)), "put it last"),
        (((prompt, True),), "no weights that could be merged"),
        (((first, False), (second, True)), "cannot be merged while"),
        (((dora, False), (first, False)), "DoRA cannot stay attached in a stack"),
        (((first, False), (dora, False)), "DoRA cannot stay attached in a stack"),
    ):
        with pytest.raises(ModelError, match=word):
            planned(*under)


def test_a_pickled_adapter_is_refused_unless_allowed(shop: Workshop, broken: Path) -> None:
    from safetensors.torch import load_file

    file = broken / "adapter_model.safetensors"
    torch.save(load_file(file), broken / "adapter_model.bin")
    file.unlink()
    said = refused(shop.base(), broken)
    assert said.startswith(f"{broken}: only a pickled adapter")
    assert "allow_pickle: true" in said
    base, under = cell_lora(shop)
    found = scored(opened(base, [broken], allow_pickle=True), CONTEXTS)
    assert found == scored(opened(base, under), CONTEXTS)


def test_peft_is_not_installed(
    shop: Workshop, broken: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    assert "pip install 'ceval-suite[lora]'" in refused(shop.base(), broken)


def test_what_is_no_adapter_directory(shop: Workshop, broken: Path, tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    assert refused(shop.base(), nowhere).startswith(f"{nowhere}: no such directory")
    assert "no adapter_config.json" in refused(shop.base(), shop.base())
    whole = (broken / "adapter_model.safetensors").read_bytes()
    (broken / "adapter_model.safetensors").write_bytes(whole[: len(whole) // 2])
    assert "truncated or broken" in refused(shop.base(), broken)
    (broken / "adapter_model.safetensors").unlink()
    assert "no weights (adapter_model.safetensors)" in refused(shop.base(), broken)
    (broken / "adapter_model.safetensors").write_bytes(whole)
    settings(broken, peft_type="WISHFUL")
    assert "peft cannot read adapter_config.json" in refused(shop.base(), broken)
    (broken / "adapter_config.json").write_text("[]")
    assert "not a JSON object" in refused(shop.base(), broken)


def test_an_adapter_that_cannot_be_had_from_the_hub(shop: Workshop) -> None:
    # in a process of its own: huggingface_hub reads its settings once
    code = (
        "from ceval_suite.backends import adapter_files\n"
        "from ceval_suite.errors import ModelError\n"
        "from ceval_suite.model_spec import ModelSpec\n"
        "spec = ModelSpec(path='.', adapters=[{'path': 'nobody/lora'}])\n"
        "try:\n    adapter_files.folders(spec)\n"
        "except ModelError as error:\n    print(error)\n"
    )
    environment = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120
    )
    assert done.stdout == (
        "nobody/lora: neither a local path nor reachable on the hub; check the name, the network, "
        "or set HF_ENDPOINT to a mirror.\n"
    )


def test_an_adapter_given_as_the_model_whose_base_is_not_here(broken: Path) -> None:
    settings(broken, base_model_name_or_path="/gone/llama")
    said = refused(broken)
    assert said.startswith(f"{broken}: a peft adapter whose base, /gone/llama, cannot be found")
    assert "`adapters`" in said


def test_a_directory_that_is_both_checkpoint_and_adapter(shop: Workshop, broken: Path) -> None:
    # transformers would load the base that the adapter names, and not the weights beside it
    for file in shop.base().iterdir():
        shutil.copy(file, broken)
    assert "both a checkpoint and an adapter" in refused(broken)


# the merged checkpoint


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "name",
    ["stacked LoRA", "LoRA with added tokens", "DoRA", *(n for n in MATRIX if "tied" in n)],
)
def test_a_merged_checkpoint_scores_as_the_adapters_attached(
    name: str, dtype: str, shop: Workshop, tmp_path: Path
) -> None:
    base, under = MATRIX[name](shop)
    added = "added tokens" in name
    contexts = [*CONTEXTS, *([NEW] if added else [])]
    tokenizer = shop.extended(ADDED) if added else shop.tokenizer
    oracle = by_hand(shop.load(base, under, dtype), tokenizer, contexts)
    listed = [Adapter(path=str(path)) for path in under]
    spec = ModelSpec(path=str(base), adapters=listed, dtype=dtype, device="cpu")
    out = tmp_path / "out" / "merged"
    written = merging.merge(spec, out, lambda _: None)

    found = scored(opened(out, dtype=dtype), contexts)
    assert difference(found, oracle) <= DTYPES[dtype]
    assert stored_dtypes(out) == {getattr(torch, dtype)}
    assert json.loads((out / "merge.json").read_text()) == written
    assert [one["sha256"] for one in written["adapters"]] == [
        one["sha256"] for one in sources.identity(spec, base)["adapters"]
    ]
    assert written["merged"]["weights_sha256"] == sources.weights_fingerprint(out)
    assert sorted(p.name for p in out.parent.iterdir()) == ["merged"]


def stored_dtypes(folder: Path) -> set[torch.dtype]:
    from safetensors.torch import load_file

    files = folder.glob("*.safetensors")
    return {tensor.dtype for file in files for tensor in load_file(file).values()}


@pytest.fixture
def call(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """`ceval-suite ARGS` in this process."""
    monkeypatch.setenv("CEVAL_SUITE_DEBUG", "")

    def run(*args: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ceval-suite", *map(str, args)])
        code: Any = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code or 0
        return (code, *capsys.readouterr())

    return run


def test_model_merge_writes_a_sharded_checkpoint_in_the_bases_own_dtype(
    shop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Any
) -> None:
    base, (first, second) = cell_stacked(shop)
    narrow = tmp_path / "narrow"
    shop.load(base, [], "bfloat16").save_pretrained(narrow)
    # a base's generation settings that contradict each other are kept as they are
    odd = {"do_sample": False, "temperature": 0.9, "top_p": 0.6}
    (narrow / "generation_config.json").write_text(json.dumps(odd))
    shop.tokenizer.save_pretrained(narrow)
    monkeypatch.setattr(merging, "SHARD", "200KB")
    out = tmp_path / "merged"
    options = ["--adapter", first, "--adapter", second, "--out", out, "--device", "cpu"]
    code, printed, said = call("model", "merge", narrow, *options)
    assert (code, printed.strip()) == (0, str(out))
    assert f"{second}: LORA on 6 modules changes logits by" in said
    assert stored_dtypes(out) == {torch.bfloat16}
    assert len(list(out.glob("*.safetensors"))) > 1
    assert json.loads((out / "generation_config.json").read_text()) == odd
    same = (out / "tokenizer.json").read_bytes() == (narrow / "tokenizer.json").read_bytes()
    assert same
    assert scored(opened(out), CONTEXTS)

    code, printed, said = call("model", "merge", narrow, *options)
    assert (code, printed) == (1, "")
    assert said.strip().endswith(f"error: {out}: not an empty folder; give another --out.")


def test_model_merge_has_one_sentence_for_what_cannot_be_merged(
    shop: Workshop, tmp_path: Path, call: Any
) -> None:
    base = shop.base()
    code, _, said = call("model", "merge", base, "--out", tmp_path / "out")
    assert (code, said) == (1, f"error: {base}: no adapters to merge; name some with --adapter.\n")
    prompt = shop.adapter("PROMPT_TUNING", base, KINDS["PROMPT_TUNING"][0], scale=0.5)
    code, _, said = call("model", "merge", prompt, "--out", tmp_path / "out")
    assert code == 1
    assert f"{prompt}: PROMPT_TUNING has no weights that could be merged" in said
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_that_answers_otherwise_is_not_kept(
    shop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, under = cell_lora(shop)
    spec = ModelSpec(path=str(base), adapters=[Adapter(path=str(under[0]))], device="cpu")

    def write(spec: ModelSpec, loaded: loading.Loaded, folder: Path) -> None:
        shutil.copytree(base, folder)  # as if the merge had been lost on the way to the disk

    monkeypatch.setattr(merging, "_write", write)
    with pytest.raises(ModelError, match="differs from the attached adapters"):
        merging.merge(spec, tmp_path / "out", lambda _: None)
    assert list(tmp_path.iterdir()) == []
