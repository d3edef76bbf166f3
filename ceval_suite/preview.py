"""The exact prompt of any item, before anything heavy happens."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from ceval_suite.backends import tokenizers
from ceval_suite.backends.tokens import Encoder
from ceval_suite.catalog import load_model_spec
from ceval_suite.errors import ConfigError
from ceval_suite.exams import parts
from ceval_suite.prepare import Prepared
from ceval_suite.request import Prompt
from ceval_suite.schema import Item


def lines(prepared: Prepared) -> Iterator[str]:
    """One JSON line per item: id, prompt, labels, answer.

    Every item of the split is there, also those whose kind the method cannot score.
    """
    for subject in prepared.subjects:
        renderer = prepared.renderer(subject)
        for item in prepared.items[subject]:
            prompt = renderer.render(item)
            row = {
                "id": item.id,
                "prompt": prompt.text,
                "labels": list(item.labels),
                "answer": list(item.answer),
            }
            yield json.dumps(row, ensure_ascii=False)


def text(prepared: Prepared, subject: str, index: int, model: str | None = None) -> str:
    """Prompt, continuations and gold answer of one item for people; with a model its tokens too.

    Raises:
        ConfigError: no such row.
    """
    items = {item.id.rsplit("/", 1)[-1]: item for item in prepared.items[subject]}
    if str(index) not in items:
        raise ConfigError(f"{subject} has rows 0 to {len(items) - 1}; there is no row {index}.")
    item = items[str(index)]
    backend_part = ""
    if model is None:
        prompt = prepared.renderer(subject).render(item)
    else:
        prompt, backend_part = _with_model(prepared, subject, item, model)
    return "".join(_sections(prepared, prompt)) + backend_part


def _sections(prepared: Prepared, prompt: Prompt) -> Iterator[str]:
    item = prompt.item
    chat = ", chat" if prepared.chat else ""
    yield f"── {item.id} · {prepared.protocol} · {prompt.shots}-shot{chat} · prompt\n"
    yield prompt.text
    yield "⏎\n" if not prompt.text.endswith("\n") else ""
    if prompt.lead:
        yield f"── lead, scored after the official prompt: {prompt.lead!r}\n"
    yield from _asked(prepared, prompt)
    yield f"── answer: {', '.join(item.answer) or '(no label)'}\n"
    for note in (prepared.template.note, *item.flags):
        if note:
            yield f"── note: {note.strip()}\n"


def _asked(prepared: Prepared, prompt: Prompt) -> Iterator[str]:
    """What a model is asked for after the prompt."""
    item, method = prompt.item, prompt.method
    if method is None:
        yield f"── not scored by this method: kind {item.kind}\n"
    elif item.kind == "blanks" and method in ("chain", "forced"):
        renderer = prepared.renderer(item.subject)
        some = [renderer.render(part, before=part.before) for part in parts(item)]
        before = "the model's own" if method == "chain" else "the right"
        yield f"── {len(some)} sub-questions, each asked after {before} answers to those before:\n"
        for part in some:
            yield f"   {part.item.id}: {part.text[len(prompt.text) :]!r} → {part.item.answer[0]}\n"
    elif method == "sequence":
        yield f"── letters one after the other, until {prepared.template.end!r} is likelier\n"
    if prompt.continuations and method != "sequence":
        yield f"── continuations: {', '.join(repr(c) for c in prompt.continuations)}\n"
    if prompt.max_new_tokens:
        stop = ", ".join(repr(text) for text in prompt.stop)
        until = f", until {stop}" if stop else ""
        yield f"── written: at most {prompt.max_new_tokens} tokens{until}\n"
    if prompt.second:
        yield f"── asked again after that: {prompt.second!r}\n"


def _with_model(prepared: Prepared, subject: str, item: Item, model: str) -> tuple[Prompt, str]:
    _, spec = load_model_spec(model)
    if not spec.tokenizer and spec.backend in ("server", "lm_eval"):
        prompt = prepared.renderer(subject, str if prepared.chat else None).render(item)
        return prompt, (
            f"── tokens: those of backend {spec.backend}; give `tokenizer: DIR` in models.yaml to "
            "see them\n"
        )
    # a server has no files: only its tokenizer can be looked at
    where = Path(spec.tokenizer) if spec.tokenizer and spec.backend == "server" else None
    tokenizer = tokenizers.load_tokenizer(spec, where)

    def in_chat(user: str) -> str:
        return tokenizers.wrap(tokenizer, user)

    wrap = in_chat if prepared.chat else None
    prompt = prepared.renderer(subject, wrap).render(item)
    if not prompt.continuations:
        return prompt, ""
    request = prompt.request()
    encoder = Encoder(tokenizer)
    encoded = encoder.encode([request])
    (found,) = tokenizers.audit(tokenizer, encoded, [request])
    out = [f"── {len(encoded[0].head)} tokens, the last ten of them {found['context_tail']!r}\n"]
    for continuation, tokens in found["continuations"].items():
        ids = " ".join(str(i) for i in tokens["ids"])
        shown = " ".join(repr(t) for t in tokens["tokens"])
        out.append(f"   {continuation!r} → {shown} ({ids})\n")
    verdict = "one token each" if found["one_token"] else "scored by full continuation"
    return prompt, "".join(out) + f"── letters: {verdict}\n"
