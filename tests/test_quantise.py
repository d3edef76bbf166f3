"""Quantised weights: every method that a CPU can run is loaded, scored and equals its oracle."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ceval_suite.backends import loading, quantise, requantise, sources, weights
from ceval_suite.catalog import override
from ceval_suite.errors import ConfigError, ModelError
from ceval_suite.model_spec import ModelSpec, Quant
from tests.quantising import as_gguf, by_hand, furthest, have, linear, quiet, read, scores

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # bitsandbytes says for each layer that it multiplies in float16
    pytest.mark.filterwarnings("ignore:MatMul8bitLt"),
]

# each method, applied while loading


def bitsandbytes(bits: int, kind: str = "") -> Any:
    from transformers import BitsAndBytesConfig

    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=["lm_head"])
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=kind,
        bnb_4bit_compute_dtype=torch.float32,
        llm_int8_skip_modules=["lm_head"],
    )


def torchao(bits: int, group: int | None = None, symmetric: bool = True) -> Any:
    from torchao.quantization import IntxWeightOnlyConfig, MappingType, PerAxis, PerGroup
    from transformers import TorchAoConfig

    return TorchAoConfig(
        IntxWeightOnlyConfig(
            weight_dtype=getattr(torch, f"int{bits}"),
            granularity=PerGroup(group) if group else PerAxis(0),
            mapping_type=MappingType.SYMMETRIC if symmetric else MappingType.ASYMMETRIC,
        ),
        modules_to_not_convert=["lm_head"],
    )


def quanto(kind: str) -> Any:
    from transformers import QuantoConfig

    return QuantoConfig(weights=kind, modules_to_not_convert=["lm_head"])


METHODS: dict[str, tuple[dict[str, Any], str, Callable[[], Any]]] = {
    "bitsandbytes int8": (
        {"method": "bitsandbytes"},
        "bitsandbytes",
        lambda: bitsandbytes(8),
    ),
    "bitsandbytes nf4": (
        {"method": "bitsandbytes", "bits": 4},
        "bitsandbytes",
        lambda: bitsandbytes(4, "nf4"),
    ),
    "bitsandbytes fp4": (
        {"method": "bitsandbytes", "bits": 4, "type": "fp4"},
        "bitsandbytes",
        lambda: bitsandbytes(4, "fp4"),
    ),
    "torchao int8": ({"method": "torchao"}, "torchao", lambda: torchao(8)),
    "torchao int4": ({"method": "torchao", "bits": 4}, "torchao", lambda: torchao(4)),
    "torchao int4 groups asymmetric": (
        {
            "method": "torchao",
            "bits": 4,
            "granularity": "group",
            "group_size": 32,
            "symmetric": False,
        },
        "torchao",
        lambda: torchao(4, 32, False),
    ),
    "quanto int8": ({"method": "quanto"}, "optimum.quanto", lambda: quanto("int8")),
    "quanto float8": (
        {"method": "quanto", "type": "float8"},
        "optimum.quanto",
        lambda: quanto("float8"),
    ),
}
EXACT = 1e-4
"""What the order of float32 sums may change."""

ROUGH = {"bitsandbytes int8": 0.05, "bitsandbytes nf4": 0.05, "bitsandbytes fp4": 0.05}
"""The same for libraries that compute in float16 or bfloat16 by themselves."""


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", METHODS)
def test_a_method_applied_while_loading_equals_transformers_by_hand(
    tiny_model: Path, name: str, dtype: str
) -> None:
    quant, package, made = METHODS[name]
    have(package)
    spec = ModelSpec(path=str(tiny_model), quant=Quant(**quant), device="cpu", dtype=dtype)
    found, about = scores(spec)
    model, tokenizer = read(tiny_model, quantization_config=made(), dtype=getattr(torch, dtype))
    tolerance = ROUGH.get(name, EXACT) if dtype == "float32" else 0.3
    assert furthest(found, by_hand(model, tokenizer)) <= tolerance
    assert about["quantisation"]["modules"] == 14  # seven linear layers a block, two blocks
    assert about["quantisation"]["method"] == quant["method"]
    assert about["quantisation"]["bits"] == quant.get("bits", 8)
    # and it did change the model
    plain, _ = scores(ModelSpec(path=str(tiny_model), device="cpu", dtype=dtype))
    assert furthest(found, plain) > 1e-3


@pytest.mark.parametrize(
    ("bits", "group"), [(8, None), (4, None), (4, 64)], ids=["8", "4", "4 groups"]
)
def test_hqq_equals_its_own_layers_put_in_by_hand(
    tiny_model: Path, bits: int, group: int | None
) -> None:
    have("hqq")
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

    size = {"granularity": "group", "group_size": group} if group else {}
    quant = Quant(method="hqq", bits=bits, **size)  # type: ignore[arg-type]
    found, about = scores(ModelSpec(path=str(tiny_model), quant=quant, device="cpu"))
    model, tokenizer = read(tiny_model)
    for name, module in list(model.model.named_modules()):
        if isinstance(module, torch.nn.Linear):
            config = BaseQuantizeConfig(nbits=bits, group_size=group, axis=1)
            made = HQQLinear(module, config, compute_dtype=torch.float32, device="cpu")
            model.model.set_submodule(name, made)
    assert furthest(found, by_hand(model, tokenizer)) <= EXACT
    assert about["quantisation"]["modules"] == 14


# checkpoints on disk


WAYS = [
    Quant(
        method="torchao",
        bits=bits,  # type: ignore[arg-type]
        granularity=granularity,  # type: ignore[arg-type]
        group_size=32 if granularity == "group" else None,
        symmetric=symmetric,
    )
    for bits in (8, 4)
    for granularity in ("tensor", "channel", "group")
    for symmetric in (True, False)
]


def named(quant: Quant) -> str:
    return f"{quant.bits}-{quant.granularity}-{'symmetric' if quant.symmetric else 'asymmetric'}"


@pytest.mark.parametrize("quant", WAYS, ids=named)
def test_a_written_checkpoint_scores_as_transformers_reads_it_and_as_in_memory(
    tiny_model: Path, tmp_path: Path, quant: Quant
) -> None:
    have("torchao", "compressed_tensors")
    spec = ModelSpec(path=str(tiny_model), device="cpu")
    about = requantise.quantize("tiny", spec, quant, tmp_path / "out", quiet)
    written = ModelSpec(path=str(tmp_path / "out"), device="cpu")
    found, told = scores(written)
    memory, _ = scores(spec.model_copy(update={"quant": quant}))
    assert furthest(found, memory) <= EXACT
    assert told["quantisation"]["modules"] == about["modules"] == 14
    assert told["quantisation"]["bits"] == quant.bits
    assert about["identity"]["weights_sha256"] != told["weights_sha256"]
    # every weight is what the definition makes of it, and plain torch makes the same logits
    dense, tokenizer = read(tiny_model)
    before = loading.load(spec).model
    after = loading.load(written).model
    errors = {error.name: error for error in weights.errors(weights.dense(before), after)}
    assert set(errors) == {
        n for n, m in dense.model.named_modules(prefix="model") if hasattr(m, "in_features")
    }
    for name, error in errors.items():
        module = dense.get_submodule(name)
        made = linear(module.weight.data, quant)
        off = made - module.weight.data
        assert error.mse == pytest.approx(float(off.square().mean()), rel=0.02)
        assert error.largest == pytest.approx(float(off.abs().max()), rel=0.02)
        module.weight.data = made
    assert furthest(found, by_hand(dense, tokenizer)) <= 0.05


def test_four_bits_take_half_the_room_of_eight(tiny_model: Path, tmp_path: Path) -> None:
    have("torchao", "compressed_tensors")
    spec = ModelSpec(path=str(tiny_model), device="cpu")
    sizes = {}
    for bits in (8, 4):
        quant = Quant(method="torchao", bits=bits)  # type: ignore[arg-type]
        requantise.quantize("tiny", spec, quant, tmp_path / str(bits), quiet)
        model = loading.load(ModelSpec(path=str(tmp_path / str(bits)), device="cpu")).model
        dense = weights.dense(loading.load(spec).model)
        layers = [error.bytes_after for error in weights.errors(dense, model)]
        sizes[bits] = sum(layers)
    numbers = 2 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 128)
    assert numbers <= sizes[8] <= numbers * 1.1
    assert numbers / 2 <= sizes[4] <= numbers / 2 * 1.2


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("bits", [8, 4])
def test_a_checkpoint_stored_in_bfloat16_computes_in_what_is_asked_for(
    tiny_model: Path, tmp_path: Path, bits: int, dtype: str
) -> None:
    have("torchao", "compressed_tensors")
    spec = ModelSpec(path=str(tiny_model), device="cpu", dtype="bfloat16")
    quant = Quant(method="torchao", bits=bits)  # type: ignore[arg-type]
    requantise.quantize("tiny", spec, quant, tmp_path / "out", quiet)
    found, told = scores(ModelSpec(path=str(tmp_path / "out"), device="cpu", dtype=dtype))
    assert told["dtype"] == dtype
    plain, _ = scores(ModelSpec(path=str(tiny_model), device="cpu"))
    assert 0.0 < furthest(found, plain) < (1.0 if bits == 8 else 4.0)


def test_bitsandbytes_checkpoints_are_read_as_they_were_stored(
    tiny_model: Path, tmp_path: Path
) -> None:
    have("bitsandbytes")
    for name, config in {"8": bitsandbytes(8), "4": bitsandbytes(4, "nf4")}.items():
        model, tokenizer = read(tiny_model, quantization_config=config)
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        found, told = scores(ModelSpec(path=str(tmp_path / name), device="cpu"))
        assert furthest(found, by_hand(*read(tmp_path / name))) <= 0.05
        assert told["quantisation"]["modules"] == 14
        assert told["quantisation"]["bits"] == int(name)
        assert told["quantisation"]["method"] == "bitsandbytes"


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q5_0", "Q5_1", "Q4_0", "Q4_1"])
def test_gguf_files_of_every_type_score_as_their_blocks_say(
    tiny_model: Path, tmp_path: Path, kind: str
) -> None:
    import gguf

    own = gguf.GGMLQuantizationType[kind]
    as_gguf(tiny_model, tmp_path / "tiny.gguf", own)
    spec = ModelSpec(path=str(tmp_path / "tiny.gguf"), tokenizer=str(tiny_model), device="cpu")
    found, _ = scores(spec)
    model, tokenizer = read(tiny_model)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            blocks = gguf.quants.quantize(parameter.detach().numpy().copy(), own)
            parameter.data = torch.from_numpy(gguf.quants.dequantize(blocks, own).copy())
    assert furthest(found, by_hand(model, tokenizer)) <= 1e-3


@pytest.mark.parametrize("bits", [8, 4])
def test_a_gguf_file_is_quantised_anew_from_what_its_blocks_say(
    tiny_model: Path, tmp_path: Path, bits: int
) -> None:
    have("torchao", "compressed_tensors")
    import gguf

    as_gguf(tiny_model, tmp_path / "tiny.gguf", gguf.GGMLQuantizationType.F32)
    quant = Quant(method="torchao", bits=bits)  # type: ignore[arg-type]
    file = ModelSpec(path=str(tmp_path / "tiny.gguf"), tokenizer=str(tiny_model), device="cpu")
    found, told = scores(file.model_copy(update={"quant": quant}))
    folder, _ = scores(ModelSpec(path=str(tiny_model), quant=quant, device="cpu"))
    assert told["quantisation"]["modules"] == 14
    assert furthest(found, folder) <= 1e-3
    requantise.quantize("tiny", file, quant, tmp_path / "out", quiet)
    written, _ = scores(ModelSpec(path=str(tmp_path / "out"), device="cpu"))
    assert furthest(written, folder) <= 1e-3


# what is refused


def refused(path: Path, **options: Any) -> str:
    with pytest.raises(ModelError) as caught:
        loading.load(ModelSpec(path=str(path), **{"device": "cpu", **options}))
    said = str(caught.value)
    assert "\n" not in said
    assert said.endswith(".")
    return said


@pytest.fixture
def stored(tiny_model: Path, tmp_path: Path) -> Callable[..., Path]:
    """Makes checkpoints whose config.json says that they are quantised."""

    def make(**config: Any) -> Path:
        folder = Path(shutil.copytree(tiny_model, tmp_path / "stored"))
        content = json.loads((folder / "config.json").read_text())
        content["quantization_config"] = config
        (folder / "config.json").write_text(json.dumps(content))
        return folder

    return make


def test_quantised_already_plus_quant_names_both(stored: Callable[..., Path]) -> None:
    folder = stored(quant_method="gptq", bits=4, group_size=128)
    said = refused(folder, quant=Quant(method="torchao"))
    assert "gptq" in said
    assert "torchao" in said


@pytest.mark.parametrize("method", ["gptq", "awq", "fp8"])
def test_what_needs_a_gpu_says_so_on_a_cpu(stored: Callable[..., Path], method: str) -> None:
    said = refused(stored(quant_method=method, bits=4, group_size=128))
    assert f"{method} needs a GPU" in said


def test_fp8_while_loading_needs_a_gpu(tiny_model: Path) -> None:
    assert "fp8 needs a GPU" in refused(tiny_model, quant=Quant(method="fp8"))


@pytest.mark.parametrize("method", ["bitsandbytes", "torchao", "quanto", "hqq"])
def test_a_missing_package_is_named_with_its_extra(
    tiny_model: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantise, "find_spec", lambda _name: None)
    said = refused(tiny_model, quant=Quant(method=method))  # type: ignore[arg-type]
    assert f"pip install 'ceval-suite[{method}]'" in said


def test_hqq_checkpoints_name_the_way_that_works(stored: Callable[..., Path]) -> None:
    have("hqq")
    assert "quant: {method: hqq}" in refused(stored(quant_method="hqq"))


def test_groups_that_do_not_fill_a_row_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    have("torchao")
    quant = Quant(method="torchao", granularity="group", group_size=48)
    with pytest.raises(ModelError, match="group_size 48 does not divide the 64 inputs"):
        requantise.quantize("t", ModelSpec(path=str(tiny_model)), quant, tmp_path / "o", quiet)


def test_a_directory_in_use_is_not_written_to(tiny_model: Path) -> None:
    with pytest.raises(ModelError, match="not an empty directory"):
        requantise.quantize(
            "t", ModelSpec(path=str(tiny_model)), Quant(method="torchao"), tiny_model, quiet
        )


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"method": "gguf"}, "'bitsandbytes', 'torchao', 'quanto', 'hqq' or 'fp8'"),
        ({"method": "bitsandbytes", "bits": 4, "type": "nf5"}, "nf4, fp4"),
        ({"method": "fp8", "bits": 4}, "method fp8 has no 4 bits"),
        ({"method": "quanto", "symmetric": False}, "drop them, or use method: torchao"),
        ({"method": "torchao", "granularity": "group"}, "group_size go together"),
    ],
    ids=["method", "type", "bits", "settings", "group"],
)
def test_a_quant_line_that_says_nothing_possible_names_what_is(
    line: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        override(ModelSpec(path="x"), {"quant": line})
    assert said in str(caught.value)
    assert "quant" in str(caught.value)


def test_quantisation_decides_whether_records_are_reused(tiny_model: Path) -> None:
    plain = ModelSpec(path=str(tiny_model))
    eight = plain.model_copy(update={"quant": Quant(method="torchao")})
    four = plain.model_copy(update={"quant": Quant(method="torchao", bits=4)})
    found = [sources.identity(spec, tiny_model) for spec in (plain, eight, four)]
    assert found[0] != found[1] != found[2] != found[0]


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_packed_numbers_are_those_that_were_packed(method: str) -> None:
    from packing import AWQ_ORDER, GROUP, layer

    torch.manual_seed(5)
    weight = torch.randn(16, 64) / 10
    stored, dense = layer(method, weight)
    assert (dense - weight).abs().max() < weight.abs().max() / 7
    # taken apart bit by bit, as the kernels read them
    bits = [stored["qweight"] >> (4 * i) & 15 for i in range(8)]
    zeros = [stored["qzeros"] >> (4 * i) & 15 for i in range(8)]
    for k, n in ((0, 0), (3, 5), (17, 9), (63, 15)):
        if method == "gptq":
            number, zero = bits[k % 8][k // 8, n], zeros[n % 8][k // GROUP, n // 8] + 1
        else:
            place = AWQ_ORDER.index(n % 8)
            number, zero = bits[place][k, n // 8], zeros[place][k // GROUP, n // 8]
        scale = stored["scales"][k // GROUP, n].float()
        assert float((number - zero) * scale) == pytest.approx(float(dense[n, k]), abs=1e-6)


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="GPTQ, AWQ and FP8 need a GPU")


@needs_gpu
@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_on_a_gpu_a_packed_checkpoint_scores_as_the_weights_it_stands_for(
    method: str, tiny_llama: Callable[..., Path], tmp_path: Path
) -> None:
    have("gptqmodel", "optimum")
    from packing import GROUP, checkpoints

    # widths that every kernel takes
    shape = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2}
    source = tiny_llama(f"wide-{method}", seed=3, initializer_range=0.05, **shape)
    packed, dense = tmp_path / "packed", tmp_path / "dense"
    checkpoints(method, source, packed, dense)
    found, about = scores(ModelSpec(path=str(packed), dtype="float16", device="cuda"))
    expected, _ = scores(ModelSpec(path=str(dense), dtype="float32", device="cuda"))
    unquantised, _ = scores(ModelSpec(path=str(source), dtype="float32", device="cuda"))
    assert furthest(found, expected) < 0.05 < furthest(unquantised, expected)
    assert about["quantisation"]["modules"] == 14
    assert about["quantisation"]["method"] == method
    assert (about["quantisation"]["bits"], about["quantisation"]["group_size"]) == (4, GROUP)


@needs_gpu
@pytest.mark.parametrize("quant", [Quant(method="fp8"), Quant(method="bitsandbytes", bits=4)])
def test_on_a_gpu_quantised_models_score_near_the_unquantised(
    tiny_model: Path, quant: Quant
) -> None:
    if quant.method == "bitsandbytes":
        have("bitsandbytes")
    elif torch.cuda.get_device_capability() < quantise.FP8_CAPABILITY:
        with pytest.raises(ModelError, match="compute capability"):
            scores(ModelSpec(path=str(tiny_model), quant=quant, device="cuda"))
        return
    found, about = scores(ModelSpec(path=str(tiny_model), quant=quant, device="cuda"))
    plain, _ = scores(ModelSpec(path=str(tiny_model), device="cuda"))
    assert about["quantisation"]["modules"] == 14
    assert 0 < furthest(found, plain) < 4


# the report


def test_divergence_and_flips_are_those_of_the_records(tiny_model: Path, tmp_path: Path) -> None:
    have("torchao", "matplotlib")
    from ceval_suite import quantised
    from ceval_suite.prepare import Selection
    from ceval_suite.report import quantisation as report

    specs = quantised.models(
        str(tiny_model), ["method=torchao,bits=4", "method=torchao"], {"device": "cpu"}
    )
    names = list(specs)
    sides = quantised.compare(specs, ["sample-mmlu"], Selection(shots=0), tmp_path, quiet)
    base, four, _ = sides
    rows = {row[0].text: row for row in report.summary(base, sides[1:]).rows}
    shown = dict(zip(report.summary(base, sides[1:]).columns, rows[names[1]], strict=True))
    other = {r.id: r for r in four.records}
    flips, divergences = 0, []
    for one in base.records:
        two = other[one.id]
        flips += one.prediction != two.prediction
        p, q = (torch.tensor(list(r.logits.values())).double().softmax(0) for r in (one, two))
        divergences.append(float((p * (p / q).log()).sum()))
    n = len(base.records)
    assert n == len(other) > 0
    assert shown["Flips"].value == pytest.approx(flips / n)
    assert shown["KL nats"].value == pytest.approx(sum(divergences) / n, rel=1e-4)
    assert shown["Bytes"].value < base.size
    assert len(four.layers) == 14
    report.plot(sides[1:], tmp_path / "plot.svg")
    assert names[1] in (tmp_path / "plot.svg").read_text()
    # nothing is computed twice
    stamps = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("records.jsonl")}
    quantised.compare(specs, ["sample-mmlu"], Selection(shots=0), tmp_path, quiet)
    assert stamps == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("records.jsonl")}


def test_runs_of_different_items_are_not_compared() -> None:
    from ceval_suite.errors import RunError
    from ceval_suite.report.quantisation import effect

    with pytest.raises(RunError, match="different items"):
        effect([], [])


def test_divergence_is_of_letters_after_the_same_text(tiny_model: Path, tmp_path: Path) -> None:
    have("torchao")
    from ceval_suite import quantised
    from ceval_suite.errors import RunError
    from ceval_suite.prepare import Selection
    from ceval_suite.report.quantisation import effect, kl

    specs = quantised.models(str(tiny_model), ["method=torchao,bits=4"], {"device": "cpu"})
    tasks = ["sample-gaokao", "sample-agieval"]
    base, four = quantised.compare(specs, tasks, Selection(shots=0, limit=2), tmp_path, quiet)
    found = effect(base.records, four.records)
    other = {record.id: record for record in four.records}
    pairs = [(one, other[one.id]) for one in base.records]
    written = [one for one, _ in pairs if one.text is not None]
    strings = [one for one, _ in pairs if any(len(label) > 1 for label in one.logprobs)]
    letters = [
        kl(one.logprobs, two.logprobs)
        for one, two in pairs
        if one not in written and one not in strings and one.prompt_sha256 == two.prompt_sha256
    ]
    assert written
    assert strings
    assert found.n == len(pairs) > len(letters) > 0
    assert found.divergence is not None
    assert (found.divergence.n, found.divergence.value) == (
        len(letters),
        pytest.approx(sum(letters) / len(letters)),
    )
    only = effect(written, [other[record.id] for record in written])
    assert only.divergence is None
    # the same letters after another text are another question
    moved = [replace(base.records[0], prompt_sha256="0" * 64)]
    with pytest.raises(RunError, match="was put in two ways"):
        effect([base.records[0]], moved)
