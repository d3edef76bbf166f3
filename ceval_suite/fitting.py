"""Items → prompts that fit into a model's context, by the benchmark's own rule."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from ceval_suite.backends.base import Backend
from ceval_suite.prepare import Prepared
from ceval_suite.prompt import Prompt
from ceval_suite.schema import Item

COUNT_CHUNK = 2048
SPECIAL = 8
"""Special tokens that a tokenizer may add to a text, at most."""


def render(prepared: Prepared, items: Sequence[Item], backend: Backend) -> list[Prompt]:
    """Prompts of the items, fitted into the backend's context by the benchmark's own rule.

    Raises:
        PromptError: one does not fit even without shots.
    """
    wrap = backend.wrap if prepared.chat else None
    renderers = {s: prepared.renderer(s, wrap) for s in prepared.subjects}
    prompts = [renderers[item.subject].render(item) for item in items]
    out: list[Prompt] = []

    def count(text: str) -> int:
        return backend.count_tokens([text], template_tokens=prepared.chat)[0]

    for start in range(0, len(prompts), COUNT_CHUNK):
        chunk = prompts[start : start + COUNT_CHUNK]
        # no tokenizer makes more tokens than bytes, so that short prompts need not be counted here;
        # a row that is too long all the same is refused by the engine, never cut
        long = [p for p in chunk if most_tokens(p.text + p.lead) >= backend.max_length]
        texts = [p.text + p.lead for p in long]
        lengths = backend.count_tokens(texts, template_tokens=prepared.chat)
        counted = dict(zip(map(id, long), lengths, strict=True))
        for prompt in chunk:
            if counted.get(id(prompt), 0) >= backend.max_length:
                fitted = renderers[prompt.item.subject]
                prompt = fitted.fit(prompt.item, count, backend.max_length)
            out.append(prompt)
    return out


def most_tokens(text: str) -> int:
    """The most tokens that any tokenizer makes of a text, whatever normal form it takes."""
    if text.isascii():
        return len(text) + SPECIAL
    longest = unicodedata.normalize("NFKD", text)  # decomposed is the longest of the normal forms
    return max(len(text.encode()), len(longest.encode())) + SPECIAL
