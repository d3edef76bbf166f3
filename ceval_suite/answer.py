"""Replies → prediction → Records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ceval_suite import equivalence, extract
from ceval_suite.circular import back
from ceval_suite.request import BARE, FIRST, TEXT, TURN, Prompt, strings
from ceval_suite.schema import Item, Record, Reply
from ceval_suite.specs import Task, Template

END = "$"
"""Follows a string of letters in `logprobs` where it stands for the string and its end."""


@dataclass(frozen=True)
class Judge:
    """Judges the answers to one task under one protocol."""

    task: Task
    template: Template

    def records(self, prompt: Prompt, replies: Mapping[str, Reply], sha256: str) -> list[Record]:
        """The records of an item: one, or one for each of its blanks.

        `replies` are those to all of the prompt's requests, by id; `sha256` is of the text that
        the continuations were put after. A reply without scores (none of the labels was among what
        a server returned) and a text that no rule reads are unanswered: no prediction, not correct.
        """
        item, main = prompt.item, replies[prompt.item.id]
        writer = replies.get(item.id + TEXT, main)
        found = _Found(tokens=main.num_tokens, shots=prompt.shots, sha256=sha256)
        if prompt.method in ("generate", "either"):
            found.text, found.cut = writer.text, not writer.finished
            predicted = self._read(prompt, writer.text or "")
            if item.id + FIRST in replies:
                found.text = f"{replies[item.id + FIRST].text}{prompt.second}{writer.text}"
        else:
            predicted = self._scored(prompt, replies, found)
        if prompt.method == "either":
            letters = self._scored(prompt, replies, found)
            found.predictions = {"exact": predicted, "first-token": letters}
        if item.kind == "blanks":
            return self._blanks(item, predicted, found)
        return [self._record(item, predicted, found)]

    def _read(self, prompt: Prompt, text: str) -> list[str]:
        subject = self.task.subjects[prompt.item.subject]
        language = subject.language or (
            None if self.task.language == "zh+en" else self.task.language
        )
        return extract.predict(
            text, prompt.item, self.template, subject, language, shots=prompt.shots
        )

    def _scored(self, prompt: Prompt, replies: Mapping[str, Reply], found: _Found) -> list[str]:
        """The prediction by probability; notes the scores.

        Labels decide ties, the first in their order, as every official script has it. Raw float32
        logits decide when every continuation is one token, else summed log-probabilities.
        """
        item, reply = prompt.item, _of_labels(prompt, replies[prompt.item.id])
        found.mass = reply.choice_mass
        if prompt.method == "sequence":
            return _sequence(item, reply, found)
        order = sorted(range(len(item.labels)), key=lambda i: item.labels[i])
        found.logits = {item.labels[i]: reply.logits[i] for i in order} if reply.logits else {}
        found.logprobs = (
            {item.labels[i]: reply.logprobs[i] for i in order} if reply.logprobs else {}
        )
        found.bounded = [item.labels[i] for i in order if i in reply.bounded]
        scores = list(reply.logits or reply.logprobs)
        if prompt.method == "continuation" and scores:
            bare = replies.get(item.id + BARE)
            scores = self._normalised(prompt, reply, bare and _of_labels(prompt, bare))
        if not scores:
            return []
        found.turns = [
            _turn(item, order, replies[f"{item.id}{TURN}{turn}"], turn)
            for turn in range(1, len(prompt.turns) + 1)
        ]
        best = max(order, key=lambda i: scores[i])
        found.tie = sum(scores[i] == scores[best] for i in order) > 1
        return [item.labels[best]]

    def _normalised(self, prompt: Prompt, reply: Reply, bare: Reply | None) -> list[float]:
        """Log-probabilities of whole options as the protocol compares them."""
        how, logprobs = self.template.normalise, reply.logprobs
        if how == "token":
            lengths: Sequence[int] = reply.lengths
            return [value / n for value, n in zip(logprobs, lengths, strict=True)]
        if how == "byte":
            texts = prompt.continuations
            return [v / len(text.encode()) for v, text in zip(logprobs, texts, strict=True)]
        if how == "pmi" and bare is not None:
            return [a - b for a, b in zip(logprobs, bare.logprobs, strict=True)]
        return list(reply.logits or logprobs)

    def _blanks(self, item: Item, predicted: Sequence[str], found: _Found) -> list[Record]:
        """One record for each blank; a text is kept in each, for each is judged by itself."""
        letters = [*predicted, *[""] * (len(item.answer) - len(predicted))]
        return [
            found.record(id, item, [gold], [letter] if letter else [], float(letter == gold))
            for id, gold, letter in zip(item.record_ids(), item.answer, letters, strict=True)
        ]

    def _record(self, item: Item, predicted: list[str], found: _Found) -> Record:
        score = self._score(item, predicted, found) if item.answer else None
        for way in found.predictions.values():
            # ColossalEval's combined metric: right by either
            score = max(score, self._score(item, way, found)) if score is not None else None
        return found.record(item.id, item, [*item.answer], predicted, score)

    def _score(self, item: Item, predicted: list[str], found: _Found) -> float:
        """The share of the item's points that a prediction earns."""
        if item.kind == "cloze":
            text = predicted[0] if predicted else None
            if text is not None and equivalence.can_compare():
                second = equivalence.symbolic(text, item.answer[0])
                found.opinions = {} if second is None else {"sympy": second}
            return float(equivalence.is_equiv(text, item.answer[0]))
        if self.template.match == "any":
            return float(any(label in item.answer for label in predicted))
        if predicted == [*item.answer]:
            return 1.0
        partial = self.task.subjects[item.subject].partial
        return partial if predicted and set(predicted) <= set(item.answer) else 0.0


def _of_labels(prompt: Prompt, reply: Reply) -> Reply:
    """The reply with a value for each label, where two have the same text and were asked once."""
    distinct = prompt.distinct()
    if not reply.logprobs or len(distinct) == len(prompt.continuations):
        return reply
    places = [distinct.index(text) for text in prompt.continuations]
    return replace(
        reply,
        logprobs=tuple(reply.logprobs[k] for k in places),
        logits=tuple(reply.logits[k] for k in places) if reply.logits else (),
        lengths=tuple(reply.lengths[k] for k in places) if reply.lengths else (),
        bounded=tuple(label for label, k in enumerate(places) if k in reply.bounded),
    )


@dataclass
class _Found:
    """What a record says beside the answer."""

    tokens: int
    shots: int
    sha256: str
    logits: dict[str, float] = field(default_factory=dict[str, float])
    logprobs: dict[str, float] = field(default_factory=dict[str, float])
    mass: float | None = None
    tie: bool = False
    bounded: list[str] = field(default_factory=list[str])
    text: str | None = None
    cut: bool = False
    predictions: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    opinions: dict[str, bool] = field(default_factory=dict[str, bool])
    turns: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])

    def record(
        self, id: str, item: Item, answer: list[str], predicted: list[str], score: float | None
    ) -> Record:
        """The record of one answer that earns `score`; None without a gold label."""
        return Record(
            id=id,
            subject=item.subject,
            answer=answer,
            prediction=predicted,
            correct=None if score is None else score == 1.0,
            score=score,
            logits=self.logits,
            logprobs=self.logprobs,
            choice_mass=self.mass,
            tie=self.tie,
            text=self.text,
            shots=self.shots,
            prompt_tokens=self.tokens,
            prompt_sha256=self.sha256,
            bounded=self.bounded,
            cut=self.cut,
            predictions=self.predictions,
            opinions=self.opinions,
            turns=self.turns,
            # sub-questions of one item say so by their ids
            cluster="" if item.cluster == id.partition("#")[0] else item.cluster,
        )


def _turn(item: Item, order: Sequence[int], reply: Reply, turn: int) -> dict[str, Any]:
    """The answer in one of the other orders, in the letters of the published one."""
    scores = reply.logits or reply.logprobs
    if not scores:
        return {"prediction": [], "logprobs": {}}
    best = max(order, key=lambda i: scores[i])
    logprobs = {back(item.labels, item.labels[i], turn): reply.logprobs[i] for i in order}
    return {
        "prediction": [back(item.labels, item.labels[best], turn)],
        "logprobs": dict(sorted(logprobs.items())),
    }


def _sequence(item: Item, reply: Reply, found: _Found) -> list[str]:
    """The letters that follow one another, each the likeliest next; its end may be likelier.

    Read off the log-probabilities of all ascending strings of letters, with and without an end:
    what comes next after a string has the probability of both over that of the string.
    """
    if not reply.logprobs:
        return []
    names = strings(item.labels)
    keys = [*names, *(name + END for name in names)]
    found.logprobs = dict(zip(keys, reply.logprobs, strict=True))
    labels = sorted(item.labels)
    written = ""
    while True:
        more = [written + label for label in labels if not written or label > written[-1]]
        ways = [*more, *([written + END] if written else [])]
        best = max(ways, key=lambda way: found.logprobs[way])
        found.tie |= sum(found.logprobs[way] == found.logprobs[best] for way in ways) > 1
        if best.endswith(END):
            return [*written]
        written = best
