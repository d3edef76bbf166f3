"""The tokenizer of a checkpoint: exactly the one it was trained with, or an error."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from ceval_suite.backends import own_code
from ceval_suite.backends.gguf_header import check_gguf
from ceval_suite.backends.sources import TOKENIZER_FILES, resolve, tokenizer_place
from ceval_suite.backends.tokens import Encoded
from ceval_suite.errors import ModelError
from ceval_suite.model_spec import ModelSpec
from ceval_suite.schema import Request
from ceval_suite.untrusted import from_json

TRAINED_WITH_START = (
    *("llama", "mistral", "mixtral", "internlm", "internlm2", "cohere"),
    *("gemma", "gemma2", "gemma3", "gemma3_text"),
)
"""Model types whose own releases start every text with a start token. A release that does not
(Yi, of type llama) says so in its tokenizer_config.json."""


def load_tokenizer(spec: ModelSpec, path: Path | None = None) -> Any:
    """The tokenizer of a spec.

    Raises:
        ModelError: there is none, or it needs code that is not allowed.
    """
    from transformers import AutoTokenizer

    where = tokenizer_place(spec, path or resolve(spec))
    source = own_code.options(spec)
    if where.suffix == ".gguf":
        check_gguf(where)
        where, source["gguf_file"] = where.parent, where.name
    elif where.is_file():
        raise ModelError(f"{where}: expected a checkpoint directory or a .gguf file.")
    elif not _tokenizes(where):
        raise ModelError(f"{where}: no tokenizer files; give `tokenizer:` in models.yaml.")
    try:
        tokenizer = AutoTokenizer.from_pretrained(where, **source)
        if spec.trust_remote_code:  # code of its own may fail only now
            tokenizer(["A"])
    except Exception as error:  # transformers raises anything here
        raise unreadable(spec, "the tokenizer", error, where) from error
    return tokenizer if "gguf_file" in source else _exact(tokenizer, where)


def _tokenizes(folder: Path) -> bool:
    """Whether a folder holds a tokenizer of some kind."""
    named = any((folder / name).is_file() for name in TOKENIZER_FILES[:7])
    return named or any(folder.glob("*.tiktoken"))


def _exact(tokenizer: Any, folder: Path) -> Any:
    """`tokenizer` itself, or SentencePiece's own reading of a bare `tokenizer.model`.

    transformers 5 rebuilds such a LLaMA file as a BPE with its merges in the order of piece ids,
    where SentencePiece goes by score: `a  b` becomes `▁a ▁▁ b` instead of `▁a ▁ ▁b`, and most
    prompts differ for a tokenizer extended with Chinese pieces. No order of merges repairs those:
    their scores are equal, which SentencePiece settles by position in the text.
    """
    from sentencepiece import SentencePieceProcessor
    from transformers import LlamaTokenizer, TokenizersBackend

    bare = (folder / "tokenizer.model").is_file() and not (folder / "tokenizer.json").is_file()
    # the generic class is what a folder without tokenizer_config.json gets
    if not bare or type(tokenizer) not in (LlamaTokenizer, TokenizersBackend):
        return tokenizer
    try:
        SentencePieceProcessor(str(folder / "tokenizer.model"))
    except (RuntimeError, OSError):
        return tokenizer  # a tiktoken file of the same name, which transformers reads as it is
    return _sentencepiece().from_pretrained(folder)


def of_sentencepiece(file: Path) -> Any:
    """The tokenizer of a single SentencePiece file, as LLaMA's class would use it.

    Raises:
        ModelError: the file is none of SentencePiece's.
    """
    from sentencepiece import SentencePieceProcessor

    try:
        SentencePieceProcessor(str(file))
    except (RuntimeError, OSError) as error:
        raise ModelError(
            f"{file}: neither SentencePiece's nor tiktoken's format; give a checkpoint directory, "
            "tokenizer.json, a SentencePiece .model, a .tiktoken file or a .gguf file."
        ) from error
    return _sentencepiece()(vocab_file=str(file))


def _sentencepiece() -> Any:
    from transformers.tokenization_utils_sentencepiece import SentencePieceBackend

    class SentencePiece(SentencePieceBackend):
        """LLaMA's start token in front and, unless `legacy`, its blank before the text alone."""

        def __init__(self, vocab_file: str, add_bos_token: bool = True, **options: Any) -> None:
            self.add_bos_token = add_bos_token
            tokens = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
            options = {**tokens, **options, "add_bos_token": add_bos_token}
            super().__init__(vocab_file=vocab_file, **options)

        def tokenize(self, text: str, **options: Any) -> list[str]:
            if self.legacy or not text:
                return super().tokenize(text, **options)
            found = super().tokenize("▁" + text.replace("▁", " "), **options)
            special = len(found) > 1 and found[0] == "▁" and found[1] in self.all_special_tokens
            return found[1:] if special else found

        def build_inputs_with_special_tokens(
            self, token_ids_0: list[int], token_ids_1: list[int] | None = None
        ) -> list[int]:
            bos: Any = self.bos_token_id
            start = [int(bos)] if self.add_bos_token else []
            return start + token_ids_0 + (token_ids_1 or [])

    return SentencePiece


def unreadable(spec: ModelSpec, what: str, error: Exception, where: Path) -> ModelError:
    """What to say of a checkpoint part, at `where`, that a library cannot read."""
    if (own := own_code.failure(spec.path, error, where)) is not None:
        return own
    text = " ".join(str(error).split())
    if "trust_remote_code" in text:
        return ModelError(
            f"{spec.path}: {what} brings its own code; set trust_remote_code: true for it in "
            "models.yaml if you trust its source."
        )
    first = text.split(". ")[0][:300].rstrip(".")
    return ModelError(
        f"{spec.path}: {what} cannot be loaded ({first}); fetch it again, or check that its files "
        "belong together."
    )


def wrap(tokenizer: Any, user: str) -> str:
    """A user's turn in the chat template, up to the start of the assistant's turn.

    Raises:
        ModelError: the tokenizer has no chat template.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ModelError("--chat needs a chat template, and this tokenizer has none.")
    turns = [{"role": "user", "content": user}]
    return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))


def configuration(path: Path) -> dict[str, Any]:
    """config.json, or what stands for it in a GGUF header."""
    if path.suffix == ".gguf":
        try:
            found = check_gguf(path).metadata
        except ModelError:
            return {}
        kind = str(found.get("general.architecture", ""))
        return {
            "model_type": kind,
            "architectures": [f"{kind} (GGUF)"],
            "max_position_embeddings": found.get(f"{kind}.context_length"),
            "bos_token_id": found.get("tokenizer.ggml.bos_token_id"),
            "add_bos_token": found.get("tokenizer.ggml.add_bos_token"),
        }
    return json_of(path / "config.json")


def json_of(file: Path) -> dict[str, Any]:
    """A JSON object in a file; empty where there is none."""
    try:
        content: Any = from_json(file.read_bytes())
    except (OSError, ValueError):
        return {}
    return cast("dict[str, Any]", content) if isinstance(content, dict) else {}


def start_token(path: Path, tokenizer: Any, warnings: list[str]) -> str:
    """Whether texts are given a start token; a warning where one seems to be missing or doubled."""
    config = configuration(path)
    bos = getattr(tokenizer, "bos_token_id", None)
    ids = tokenizer("A")["input_ids"]
    if bos is not None and list(ids[:2]) == [bos, bos]:
        warnings.append("the tokenizer adds the start token twice")
    if bos is not None and list(ids[:1]) == [bos]:
        return "added by the tokenizer"
    said = json_of(path / "tokenizer_config.json").get("add_bos_token", config.get("add_bos_token"))
    if said is False:
        return "not added, as its own configuration says"
    usual = config.get("model_type") in TRAINED_WITH_START
    if usual and config.get("bos_token_id") is not None:
        warnings.append(
            f"the tokenizer adds no start token, though config.json names one "
            f"({config['bos_token_id']}) and models of type {config['model_type']} are trained "
            "with it"
        )
    return "not added"


def chat_template(tokenizer: Any, warnings: list[str]) -> dict[str, Any] | None:
    """Hash of the chat template and who writes the start token; None without a template.

    What is wrong with it is added to `warnings`.
    """
    template: Any = getattr(tokenizer, "chat_template", None)
    if not template:
        return None
    text = template if isinstance(template, str) else json.dumps(template, sort_keys=True)
    about: dict[str, Any] = {"sha256": hashlib.sha256(text.encode()).hexdigest()}
    try:
        turns = [{"role": "user", "content": "A"}]
        shown = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # a template may raise anything
        warnings.append(f"the chat template cannot be rendered ({' '.join(str(error).split())})")
        return about
    bos = getattr(tokenizer, "bos_token_id", None)
    bare = tokenizer(shown, add_special_tokens=False)["input_ids"]
    again = tokenizer(shown)["input_ids"]
    about["start_token"] = "none" if bos is None or bare[:1] != [bos] else "written by the template"
    if bos is not None and bare[:2] == [bos, bos]:
        warnings.append("the chat template writes the start token twice")
    elif bos is not None and again[:2] == [bos, bos]:
        warnings.append(
            "template and tokenizer both write the start token: where a rendered chat is tokenised "
            "as plain text it is doubled (--chat adds none of the tokenizer's)"
        )
    return about


def tokens(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """Names of token ids; some tokenizers (Qwen's first) name theirs in bytes."""
    found: list[str | bytes] = tokenizer.convert_ids_to_tokens(list(ids))
    return [t.decode("utf-8", "replace") if isinstance(t, bytes) else t for t in found]


def _scored(request: Request) -> list[str]:
    if not request.read_as:
        return list(request.continuations)
    return [text + c for c in request.continuations for text in request.read_as]


def audit(
    tokenizer: Any, encoded: Sequence[Encoded], requests: Sequence[Request]
) -> list[dict[str, Any]]:
    """What is scored for each continuation: its token ids and their text, in context.

    Where continuations are read after texts of their own (`read_as`), each of these readings.
    """
    return [
        {
            "id": request.id,
            "one_token": one.single,
            "context_tail": tokenizer.decode(one.head[-10:].tolist()),
            "continuations": {
                continuation: {
                    "ids": list(tail),
                    "tokens": tokens(tokenizer, tail),
                }
                for continuation, tail in zip(_scored(request), one.tails, strict=True)
            },
        }
        for request, one in zip(requests, encoded, strict=True)
    ]
