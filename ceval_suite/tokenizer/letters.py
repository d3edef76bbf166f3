"""The letter table: what a tokenizer makes of the letters after every template's own cue.

Prompts are rendered and tokenised by the code that scores, so that what stands here is what a run
scores: real prompts where the benchmark's files are found, else those of the bundled exams.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ceval_suite.backends import tokenizers
from ceval_suite.backends.lexicon import Lexicon
from ceval_suite.backends.tokens import Encoded, Encoder
from ceval_suite.catalog import load_prompts
from ceval_suite.errors import PromptError
from ceval_suite.prompt import Renderer, Wrap
from ceval_suite.request import Prompt
from ceval_suite.schema import Item
from ceval_suite.specs import PARTS, Task, Template
from ceval_suite.tokenizer.material import Source

SOUND = "sound"
SHIFT = "border shift: scored from the last common border"
SEVERAL = "several tokens: scored as whole continuations"
REFUSED = "refused"
UNSEEN = "not looked at: no task asks with this wording"
VERDICTS = (SOUND, SHIFT, SEVERAL, REFUSED)
"""From what anybody would expect to what cannot be scored."""


@dataclass(frozen=True)
class Letters:
    """How the letters of one template stand, in one language and for one number of shots.

    `tokens` maps a label to what is scored for it in the first prompt, `form` says how that reads
    (`A`, ` A`, or with a part of the cue before it); `other` is the first label's tokens if it
    had no blank before it, or one where it has none. `in_shots` says whether the letters that the
    shots show are the same tokens, None without shots. The verdict is the worst of `prompts`
    looked at, and `of` of them have it; `about` is what run.json says of the first.
    """

    template: str
    task: str
    language: str
    shots: int
    cue: str
    verdict: str
    reason: str = ""
    tokens: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    form: str = ""
    other: list[str] = field(default_factory=list[str])
    in_shots: bool | None = None
    shot_tokens: dict[str, list[Any]] = field(default_factory=dict[str, list[Any]])
    prompts: int = 1
    of: int = 1
    about: dict[str, Any] = field(default_factory=dict[str, Any])


def table(
    lexicon: Lexicon,
    wanted: Sequence[tuple[str, str]],
    found: Mapping[str, Source],
    *,
    chat: bool = False,
) -> list[Letters]:
    """The letters of the wanted wordings, (prompts file, protocol), shown by what was found.

    Raises:
        ModelError: `chat` without a chat template.
    """
    pair = bool(tokenizers.configuration(lexicon.path).get("is_encoder_decoder"))
    encoder = Encoder(lexicon.tokenizer, apart=pair)
    wrap: Wrap | None = None
    if chat:
        wrap = lambda user: tokenizers.wrap(lexicon.tokenizer, user)  # noqa: E731
    out: list[Letters] = []
    for file, protocol in wanted:
        name, template = f"{file}/{protocol}", load_prompts(file)[protocol]
        rows = (
            list(_of_template(encoder, found[file], name, template, wrap)) if file in found else []
        )
        out += rows or [Letters(name, "", "", 0, "", UNSEEN)]
    return out


def _of_template(
    encoder: Encoder, source: Source, name: str, template: Template, wrap: Wrap | None
) -> Iterator[Letters]:
    by_language: dict[str, list[str]] = {}
    for subject in source.subjects(template):
        by_language.setdefault(source.language(subject), []).append(subject)
    for shots in _shots(source.task, template):
        for language, subjects in by_language.items():
            renderers: list[tuple[Renderer, Item]] = []
            for subject in subjects:
                item = source.first(subject, template)
                if item is not None:
                    shown = source.shots(subject)[:shots] if shots else []
                    made = Renderer(source.task, template, subject, shown, wrap)
                    renderers.append((made, item))
            if renderers:
                yield _row(encoder, name, language, shots, renderers)


def _shots(task: Task, template: Template) -> list[int]:
    """Numbers of shots at which the letters may stand differently."""
    if template.shots is not None:
        return [template.shots]
    most = task.shots if task.shot_split else 0
    other = template.zero_shot
    changed = other is not None and any(getattr(other, p) is not None for p in PARTS[2:5])
    return [most, 0] if most and changed else [most]


def _row(
    encoder: Encoder, name: str, language: str, shots: int, some: Sequence[tuple[Renderer, Item]]
) -> Letters:
    found = [_judged(encoder, renderer, item) for renderer, item in some]
    worst = max((one.verdict for one in found), key=VERDICTS.index)
    first = next((k for k, one in enumerate(found) if one.encoded is not None), 0)
    (renderer, _), one = some[first], found[first]
    row = Letters(
        template=name,
        task=renderer.task.name,
        language=language,
        shots=shots,
        cue=_cue(one.prompt) if one.prompt else "",
        verdict=worst,
        reason=next(one.reason for one in found if one.verdict == worst),
        prompts=len(found),
        of=Counter(one.verdict for one in found)[worst],
    )
    if one.prompt is None or one.encoded is None:
        return row
    shown = _in_shots(encoder, renderer, one.prompt)
    row = _described(row, encoder.tokenizer, one.prompt, one.encoded, shown)
    letters = renderer.template.methods.get("single") in ("letters", "either")
    return replace(row, other=_other(encoder, one.prompt)) if letters else row


@dataclass(frozen=True)
class _Judged:
    """One prompt, with what scoring would make of it."""

    verdict: str
    reason: str = ""
    prompt: Prompt | None = None
    encoded: Encoded | None = None


def _judged(encoder: Encoder, renderer: Renderer, item: Item) -> _Judged:
    prompt = None
    try:
        # the letters where they stand; ColossalEval's rule reads others as well
        prompt = replace(renderer.render(item), read_as=())
        request = prompt.request()
        (encoded,) = encoder.encode([request])
    except PromptError as error:
        return _Judged(REFUSED, str(error), prompt)
    (context,) = encoder.contexts([request.context], template_tokens=request.template_tokens)
    if not encoded.single:
        return _Judged(SEVERAL, "", prompt, encoded)
    shifted = not encoder.apart and len(encoded.head) < len(context)
    return _Judged(SHIFT if shifted else SOUND, "", prompt, encoded)


def _described(
    row: Letters,
    tokenizer: Any,
    prompt: Prompt,
    encoded: Encoded,
    shown: dict[str, tuple[int, ...]],
) -> Letters:
    (about,) = tokenizers.audit(tokenizer, [encoded], [prompt.request()])
    labels = prompt.item.labels
    tails = dict(zip(labels, encoded.tails, strict=True))
    same = [_ends_alike(tails[label], ids) for label, ids in shown.items() if label in tails]
    return replace(
        row,
        tokens=dict(zip(labels, about["continuations"].values(), strict=True)),
        form=_form(tokenizer, prompt.continuations[0], encoded),
        in_shots=all(same) if same else None,
        shot_tokens={label: tokenizers.tokens(tokenizer, ids) for label, ids in shown.items()},
        about=about,
    )


def _cue(prompt: Prompt) -> str:
    """The last line before the letter."""
    text = prompt.text + prompt.lead
    return text[text.rstrip("\n").rfind("\n") + 1 :][-40:]


def _form(tokenizer: Any, continuation: str, encoded: Encoded) -> str:
    """How what is scored for the first continuation reads: with or without a blank, or more."""
    last = encoded.head[-1:].tolist()
    before, text = (
        tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        for ids in (last, [*last, *encoded.tails[0]])
    )
    read = (
        text[len(before) :]
        if text.startswith(before)
        else "".join(tokenizers.tokens(tokenizer, encoded.tails[0]))
    )
    return read if len(read) < 12 else continuation[:12] + "…"


def _other(encoder: Encoder, prompt: Prompt) -> list[str]:
    """Tokens of the first letter, were the blank before it left out or put there."""
    request = prompt.request()
    letter, context = request.continuations[0].lstrip(" "), request.context.rstrip(" ")
    blank = (context, letter) == (request.context, request.continuations[0])
    changed = replace(request, context=context, continuations=(" " * blank + letter,))
    try:
        (encoded,) = encoder.encode([changed])
    except PromptError:
        return []
    return tokenizers.tokens(encoder.tokenizer, encoded.tails[0])


def _in_shots(encoder: Encoder, renderer: Renderer, prompt: Prompt) -> dict[str, tuple[int, ...]]:
    """Label → the tokens that stand for it where a shot shows it."""
    spans = renderer.shown_answers()
    if not spans:
        return {}
    plain = Renderer(renderer.task, renderer.template, renderer.subject, renderer.shots)
    # a chat template writes text of its own before the prompt
    at = prompt.text.find(plain.render(prompt.item).text[: spans[-1][1]])
    if at < 0:
        return {}
    special = not prompt.chat
    text = prompt.text + prompt.lead
    (whole,) = encoder.contexts([text], template_tokens=prompt.chat)
    cut = encoder.ids([text[: at + end] for span in spans for end in span], special=special)
    out: dict[str, tuple[int, ...]] = {}
    for k, shot in enumerate(renderer.shots):
        start, end = (_common(whole, cut[2 * k + side]) for side in (0, 1))
        # a letter that has grown together with what follows it ends in a token of another kind
        end += end < len(cut[2 * k + 1])
        out.setdefault(shot.answer_text, tuple(int(i) for i in whole[start:end]))
    return out


def _common(a: Any, b: Any) -> int:
    n = min(len(a), len(b))
    different = np.flatnonzero(a[:n] != b[:n])
    return int(different[0]) if len(different) else n


def _ends_alike(scored: tuple[int, ...], shown: tuple[int, ...]) -> bool:
    """Whether the shorter of two ends the longer: borders may lie before a piece of the cue."""
    n = min(len(scored), len(shown))
    return n > 0 and scored[-n:] == shown[-n:]
