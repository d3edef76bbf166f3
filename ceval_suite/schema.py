"""The nouns: frozen data in flight, from a benchmark file to a table.

Item → Request → Reply → Record → Estimate → Table. Nothing here imports anything of ours.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

Kind: TypeAlias = Literal["single", "multi", "blanks", "cloze"]
"""single: one letter; multi: a set; blanks: several letters in order; cloze: free text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One question with its choices, as published.

    `id` is `<task>/<split>/<subject>/<row>` with the 0-based row of the published file. `options`
    are the strings as printed there (AGIEval's carry `(A)` prefixes); `choices` are the same texts
    without their prefix, one per entry of `labels`, in printed order. `answer` holds the gold
    letters (in order for `blanks`; sorted for `multi`; empty when the file withholds or lacks
    them), `answer_text` the label exactly as the published file prints it when the item serves
    as a shot. `points` is what one answered sub-question is worth. `cluster` is equal for items
    that share a passage, or are sub-questions of one. `flags` name known troubles (`image`: needs
    a picture that is not there). `year` is that of the exam, where the file says so.

    An item of kind `blanks` has one record for each of its answers, numbered from 0: `<id>#<k>`.
    One of its sub-questions, asked by itself, is an item of kind `single` with that id; `part` is
    its number from 1, `parts` how many there are, and `before` the gold letters of those before it.
    """

    id: str
    subject: str
    question: str
    options: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    answer: tuple[str, ...] = ()
    answer_text: str = ""
    kind: Kind = "single"
    passage: str = ""
    explanation: str = ""
    points: float = 1.0
    cluster: str = ""
    flags: tuple[str, ...] = ()
    year: str = ""
    part: int = 0
    parts: int = 0
    before: tuple[str, ...] = ()

    def record_ids(self) -> tuple[str, ...]:
        """The ids of the records that answering this item makes."""
        if self.kind != "blanks":
            return (self.id,)
        return tuple(f"{self.id}#{k}" for k in range(len(self.answer)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One question put to a model: score each continuation after the context, write on, or both.

    `template_tokens` is true when the context came out of a chat template, which writes the
    special tokens itself, so that none may be added. With `max_new_tokens` the model writes on
    after the context, greedily, until it ends by itself, one of `stop` appears (and is cut off) or
    so many tokens are written. `after` names another request of the same call: its context,
    `joint`, what was answered to it (the likeliest continuation, or the text that was written) and
    `context` are then put one behind the other. `read_as` is ColossalEval's rule: each continuation
    is read as the last token of each of these texts with it, whatever stands in the context, and
    the likeliest of those counts (colossal_eval/models/huggingface.py@4f9953be,
    _get_choices_indices). Requests that name one `unit` may be computed together, and with nothing
    else where results must be the same however the work is shared.
    """

    id: str
    context: str
    continuations: tuple[str, ...] = ()
    template_tokens: bool = False
    max_new_tokens: int = 0
    stop: tuple[str, ...] = ()
    after: str = ""
    joint: str = ""
    read_as: tuple[str, ...] = ()
    unit: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What a model answered: one value per continuation, in the request's order.

    `logprobs` are natural logarithms over the full vocabulary, summed over a continuation's
    tokens; empty when none of the continuations was among what a server returned (unanswered).
    `logits` are the raw float32 head outputs when every continuation is one token, else
    empty. `choice_mass` is the probability of all continuations together (of those that a server
    returned, where it left some out: a lower bound). `bounded` holds the places in
    `logprobs` of continuations that a server did not return: their value is the most that they
    can have, not what they have. `new_tokens` counts the tokens that had to be computed for this
    request, having been computed for none before it.
    """

    id: str
    logprobs: tuple[float, ...] = ()
    logits: tuple[float, ...] = ()
    num_tokens: int = 0
    choice_mass: float = 0.0
    new_tokens: int = 0
    bounded: tuple[int, ...] = ()
    text: str | None = None
    finished: bool = True
    written: int = 0
    lengths: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One line of `records.jsonl`; field order is the order on disk.

    `correct` and `score` are None when the item has no gold label. `score` is the share of the
    item's points that were earned, in [0, 1]. `bounded` names the labels whose entry in `logprobs`
    is only the most that it can be, because a server did not return it; a line on disk has the
    field where there is such a label. The prediction is right all the same (what was not returned
    is less likely than what was); a distribution over the labels is not known. `choice_mass` is
    None where nothing was scored by probability. `text` is what the model wrote, `cut` that it was
    still writing when its tokens ran out. `predictions` has the prediction by each method where
    several answered, and `opinions` what other judges than the official one think of the answer.
    `cluster` is equal for records of items that share a passage; empty where one stands alone.
    `turns` has `prediction` and `logprobs`, by published letter, for each further order in which
    the options were printed.
    """

    id: str
    subject: str
    answer: list[str]
    prediction: list[str]
    correct: bool | None
    score: float | None
    logits: dict[str, float]
    logprobs: dict[str, float]
    choice_mass: float | None
    tie: bool
    text: str | None
    shots: int
    prompt_tokens: int
    prompt_sha256: str
    bounded: list[str] = field(default_factory=list[str])
    cut: bool = False
    predictions: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    opinions: dict[str, bool] = field(default_factory=dict[str, bool])
    cluster: str = ""
    turns: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """One text whose probability is measured as a whole.

    `group` is the task or the user's corpus it belongs to, `language` a code such as `zh`, or
    empty. `cluster` is equal for texts that share a passage. `id` is an item's or `<file>/<row>`.
    """

    id: str
    group: str
    language: str
    cluster: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TextRecord:
    """One line of the `records.jsonl` of a `bits-…` folder; field order is the order on disk.

    `logprob` is the natural logarithm of the whole text's probability. `size` are its bytes in
    UTF-8; `tokens` and `characters` are counted without the start token. `unknown` counts tokens
    that stand for what the tokenizer does not know.
    """

    id: str
    group: str
    language: str
    cluster: str
    logprob: float
    tokens: int
    unknown: int
    size: int
    characters: int
    text_sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A measured value with its number of items, standard error and 95 % interval."""

    value: float
    n: int
    stderr: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One table cell: what to print, and the number behind it for machines.

    What others measured is `reported`, and is set in italics. `best` is better than everything
    measured beside it by a test, and set in bold; `tied` cannot be told from the best, and is
    underlined.
    """

    text: str
    value: float | int | str | None = None
    reported: bool = False
    best: bool = False
    tied: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Columns, rows of cells and notes, ready for any rendering."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()
    numeric: frozenset[int] = field(default_factory=frozenset[int])
