"""Code that a checkpoint brings is pinned, runs only where allowed, and fails in a sentence."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from ceval_suite.backends import anatomy, loading, open_backend, own_code, sources, tokenizers
from ceval_suite.errors import ModelError
from ceval_suite.model_spec import ModelSpec
from ceval_suite.schema import Request
from tests.checkpoints import refused, settings

pytestmark = pytest.mark.usefixtures("one_thread")

OWN_CODE = """
import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput


class OwnConfig(PretrainedConfig):
    model_type = "heard-of-nowhere"


class OwnModel(PreTrainedModel):
    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        self.embed = torch.nn.Embedding(2000, 16)
        self.mix = torch.nn.Linear(16, 16)
        self.lm_head = torch.nn.Linear(16, 2000, bias=False)
        self.post_init()

    def get_input_embeddings(self):
        return self.embed

    def get_output_embeddings(self):
        return self.lm_head

    def set_output_embeddings(self, new):
        self.lm_head = new

    def forward(self, input_ids=None, attention_mask=None, use_cache=None, **options):
        seen = self.embed(input_ids)
        steps = torch.arange(1, seen.shape[1] + 1)[:, None]
        return CausalLMOutput(logits=self.lm_head(torch.tanh(self.mix(seen.cumsum(1) / steps))))
"""


@pytest.fixture
def own(tmp_path: Path, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint of an architecture that only its own code knows."""
    import torch
    from safetensors.torch import save_file
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    folder = tmp_path / "own"
    folder.mkdir()
    tiny_tokenizer.save_pretrained(folder)
    torch.manual_seed(7)
    shapes = {"embed.weight": (2000, 16), "mix.weight": (16, 16), "mix.bias": (16,)}
    content = {name: torch.randn(shape) for name, shape in shapes.items()}
    content["lm_head.weight"] = torch.randn(2000, 16)
    save_file(content, folder / "model.safetensors", {"format": "pt"})
    (folder / "modeling_own.py").write_text(OWN_CODE)
    auto = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnModel"}
    config = {"model_type": "heard-of-nowhere", "auto_map": auto, "max_position_embeddings": 512}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_checkpoint_of_its_own_code_is_scored_by_it_where_allowed(own: Path) -> None:
    import torch
    from safetensors.torch import load_file

    assert "trust_remote_code: true" in refused(own)
    backend = open_backend(ModelSpec(path=str(own), device="cpu", trust_remote_code=True))
    request = Request(id="x", context="Which one?\nAnswer:", continuations=(" A", " B"))
    (reply,) = backend.ask([request])
    # by hand: the mean of what came before, mixed
    weights = load_file(own / "model.safetensors")
    tokenizer = tokenizers.load_tokenizer(ModelSpec(path=str(own)))
    seen = weights["embed.weight"][tokenizer(request.context)["input_ids"]].mean(0)
    hidden = torch.tanh(weights["mix.weight"] @ seen + weights["mix.bias"])
    letters = [tokenizer(c)["input_ids"][0] for c in request.continuations]
    expected = (weights["lm_head.weight"] @ hidden)[letters].tolist()
    assert reply.logits == pytest.approx(expected, abs=1e-5)
    about = backend.describe()
    assert (about["architecture"], about["path"]["attention"]) == ("OwnModel", "plain")


# code of another repository


@pytest.fixture
def apart(own: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A checkpoint, and the directory of another one that it takes its classes from."""
    code = tmp_path / "code"
    code.mkdir()
    shutil.move(own / "modeling_own.py", code / "modeling_own.py")
    prefix = f"{code}--modeling_own"
    auto = {"AutoConfig": f"{prefix}.OwnConfig", "AutoModelForCausalLM": f"{prefix}.OwnModel"}
    settings(own, auto_map=auto)
    return own, code


def identity(path: Path, **options: Any) -> dict[str, Any]:
    spec = ModelSpec(path=str(path), trust_remote_code=True, **options)
    return sources.identity(spec, path)


def test_code_from_another_directory_is_part_of_the_identity(
    apart: tuple[Path, Path], tmp_path: Path
) -> None:
    folder, code = apart
    assert loading.load(ModelSpec(path=str(folder), device="cpu", trust_remote_code=True)).model
    before = identity(folder)
    assert identity(folder) == before
    (code / "modeling_own.py").write_text(OWN_CODE + "\nx = 2\n")
    after = identity(folder)
    assert after["code_sha256"] != before["code_sha256"]
    assert {k: v for k, v in after.items() if k not in ("code_sha256", "weights_sha256")} == {
        k: v for k, v in before.items() if k not in ("code_sha256", "weights_sha256")
    }
    # a tokenizer from elsewhere that takes its class from there
    tokenizer = Path(shutil.copytree(folder, tmp_path / "tokenizer"))
    settings(tokenizer, auto_map={})
    plain = identity(folder, tokenizer=str(tokenizer))
    other = tmp_path / "other"
    other.mkdir()
    (other / "own.py").write_text("x = 1")
    auto = {"AutoTokenizer": [f"{other}--own.Own", None]}
    settings(tokenizer, "tokenizer_config.json", auto_map=auto)
    named = identity(folder, tokenizer=str(tokenizer))
    (other / "own.py").write_text("x = 2")
    codes = [plain, named, identity(folder, tokenizer=str(tokenizer))]
    assert len({found["code_sha256"] for found in codes}) == 3


def test_code_on_the_hub_is_refused_until_a_commit_pins_it(own: Path) -> None:
    auto = {"AutoModelForCausalLM": "somebody/code--modeling_own.OwnModel"}
    settings(own, auto_map=auto)
    spec = ModelSpec(path=str(own), trust_remote_code=True)
    with pytest.raises(ModelError) as caught:
        sources.identity(spec, own)
    said = str(caught.value)
    assert said.startswith(f"{own}: its code lies in another repository, somebody/code,")
    assert "code_revision" in said
    assert said.endswith(".")
    assert said in anatomy.describe("x", spec)["warnings"]
    one, two = (identity(own, code_revision=digit * 40) for digit in "12")
    assert one["code_sha256"] != two["code_sha256"]
    # what may not run is no part of it
    assert "code_sha256" not in sources.identity(ModelSpec(path=str(own)), own)


def test_a_commit_reaches_transformers_and_is_a_commit() -> None:
    pinned = ModelSpec(path="x", trust_remote_code=True, code_revision="a" * 40)
    assert own_code.options(pinned) == {"trust_remote_code": True, "code_revision": "a" * 40}
    with pytest.raises(ValueError, match="code_revision"):
        ModelSpec(path="x", trust_remote_code=True, code_revision="main")
    with pytest.raises(ValueError, match="only trust_remote_code: true lets run"):
        ModelSpec(path="x", code_revision="a" * 40)


# code written for another transformers

BROKEN = {
    "a name that transformers no longer has": (
        "from transformers import PretrainedConfig",
        (
            "from transformers.utils import is_gone_for_good\n"
            "from transformers import PretrainedConfig"
        ),
        "cannot import name 'is_gone_for_good' from 'transformers.utils'",
    ),
    "a module that transformers no longer has": (
        "from transformers import PretrainedConfig",
        "import transformers.gone_for_good\nfrom transformers import PretrainedConfig",
        "No module named 'transformers.gone_for_good'",
    ),
    "an attribute when the model is built": (
        "        self.post_init()",
        "        self.post_init()\n        self.config.gone_for_good",
        "gone_for_good",
    ),
    "a method when the first tokens come": (
        "        seen = self.embed(input_ids)",
        "        self.gone_for_good(input_ids)\n        seen = self.embed(input_ids)",
        "gone_for_good",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_code_for_another_transformers_is_refused_in_a_sentence(what: str, own: Path) -> None:
    import transformers

    before, after, words = BROKEN[what]
    assert before in OWN_CODE
    text = OWN_CODE.replace(before, after)
    (own / "modeling_own.py").write_text(text)
    settings(own, transformers_version="4.33.1")
    said = refused(own, trust_remote_code=True)
    line = next(n for n, line in enumerate(text.splitlines(), 1) if "gone_for_good" in line)
    assert said.startswith(
        f"{own}: its own code (modeling_own.py, line {line}) fails under transformers "
        f"{transformers.__version__} ("
    )
    assert words in said
    assert "site-packages" not in said
    assert "serve it where transformers 4.33.1 is installed and score it by backend server" in said


TOKENIZER = """
from transformers import PreTrainedTokenizerFast


class OwnTokenizer(PreTrainedTokenizerFast):
    def __call__(self, *texts, **options):
        return super().gone_for_good(*texts, **options)
"""


def test_code_of_a_tokenizer_that_fails_with_its_first_text_is_a_sentence(own: Path) -> None:
    (own / "tokenization_own.py").write_text(TOKENIZER)
    auto = {"AutoTokenizer": [None, "tokenization_own.OwnTokenizer"]}
    settings(own, "tokenizer_config.json", tokenizer_class="OwnTokenizer", auto_map=auto)
    said = refused(own, trust_remote_code=True)
    assert "its own code (tokenization_own.py, line 7) fails under transformers" in said


def test_packages_that_own_code_needs_are_named(own: Path) -> None:
    (own / "modeling_own.py").write_text("import nobody_has_this\nimport nor_this\n" + OWN_CODE)
    assert refused(own, trust_remote_code=True) == (
        f"{own}: its own code needs packages that are not installed; run pip install "
        "nobody_has_this nor_this."
    )
