"""A chain is followed answer by answer, whoever asks, and every request is answered once."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ceval_suite.backends.hf import HFBackend
from ceval_suite.backends.rounds import asked, contexts, likeliest, rehearsed, said
from ceval_suite.errors import ModelError, PromptError
from ceval_suite.model_spec import ModelSpec
from ceval_suite.schema import Reply, Request

pytestmark = pytest.mark.usefixtures("one_thread")

LETTERS = ("A", "B", "C", "D")


@dataclass
class Oracle:
    """Answers by the context alone, in an order of its own; keeps what it was asked."""

    seed: int = 0
    calls: list[list[Request]] = field(default_factory=list)

    def answer(self, request: Request) -> Reply:
        number = crc32(request.context.encode())
        if request.max_new_tokens:
            return Reply(id=request.id, logprobs=(), text=f"<{number % 97}>")
        if number % 5 == 0:  # none of the letters was returned
            return Reply(id=request.id, logprobs=())
        # a tie now and then
        scores = tuple(-float(number // 7**k % 3) for k in range(len(request.continuations)))
        if number % 2:
            return Reply(id=request.id, logprobs=scores)
        return Reply(id=request.id, logprobs=scores[::-1], logits=scores)

    def ask(self, requests: Sequence[Request]) -> Iterator[Reply]:
        self.calls.append(list(requests))
        order = list(requests)
        random.Random(self.seed).shuffle(order)
        return map(self.answer, order)


@st.composite
def forests(draw: st.DrawFn) -> list[Request]:
    """Requests of which each follows none or one before it, in any order."""
    count = draw(st.integers(1, 14))
    out: list[Request] = []
    for k in range(count):
        after = draw(st.integers(-1, k - 1)) if k else -1
        writes = draw(st.booleans())
        out.append(
            Request(
                id=f"q{k}",
                context=f"[{k}]",
                continuations=() if writes else LETTERS[: draw(st.integers(1, 4))],
                max_new_tokens=8 if writes else 0,
                template_tokens=draw(st.booleans()),
                after="" if after < 0 else f"q{after}",
                joint=draw(st.sampled_from(["", "|", "\n"])),
            )
        )
    return draw(st.permutations(out))


def by_hand(requests: Sequence[Request]) -> dict[str, tuple[str, int, bool]]:
    """Context, depth and template of each request, one by one from the definition."""
    known = {request.id: request for request in requests}
    oracle = Oracle()
    out: dict[str, tuple[str, int, bool]] = {}

    def whole(name: str) -> tuple[str, int, bool]:
        if name not in out:
            request = known[name]
            if not request.after:
                out[name] = request.context, 0, request.template_tokens
            else:
                context, depth, template = whole(request.after)
                before = replace(known[request.after], context=context)
                reply = oracle.answer(before)
                answer = reply.text or ""
                scores = list(reply.logits or reply.logprobs)
                if scores:
                    answer = before.continuations[scores.index(max(scores))]
                out[name] = context + request.joint + answer + request.context, depth + 1, template
        return out[name]

    for request in requests:
        whole(request.id)
    return out


@given(forests(), st.integers(0, 5))
def test_every_request_is_asked_once_behind_the_answers_it_follows(
    requests: list[Request], seed: int
) -> None:
    expected = by_hand(requests)
    oracle = Oracle(seed)
    replies = list(asked(oracle.ask, requests))
    assert sorted(reply.id for reply in replies) == sorted(request.id for request in requests)
    sent = [request for call in oracle.calls for request in call]
    assert {r.id: r.context for r in sent} == {k: found[0] for k, found in expected.items()}
    assert {r.id: r.template_tokens for r in sent} == {k: f[2] for k, f in expected.items()}
    assert not any(request.after for request in sent)
    for request in requests:
        mine = next(r for r in sent if r.id == request.id)
        rest = {"context": "", "template_tokens": False, "after": "", "joint": ""}
        assert replace(mine, **rest) == replace(request, **rest)


@given(forests(), st.integers(0, 5))
def test_one_round_is_one_call_and_a_chain_keeps_its_order(
    requests: list[Request], seed: int
) -> None:
    depths = {name: found[1] for name, found in by_hand(requests).items()}
    oracle = Oracle(seed)
    order = [reply.id for reply in asked(oracle.ask, requests)]
    for depth, call in enumerate(oracle.calls):
        assert {request.id for request in call} == {k for k, d in depths.items() if d == depth}
    for request in requests:
        if request.after:
            assert order.index(request.after) < order.index(request.id)


@given(forests(), st.integers(0, 5))
def test_each_reply_is_told_the_context_that_it_was_asked_with(
    requests: list[Request], seed: int
) -> None:
    expected = by_hand(requests)
    oracle = Oracle(seed)
    for reply, context in contexts(requests, asked(oracle.ask, requests)):
        assert context == expected[reply.id][0]


@given(forests())
def test_a_rehearsal_takes_the_first_answer_everywhere(requests: list[Request]) -> None:
    def first(some: Sequence[Request]) -> Iterator[Reply]:
        for one in some:
            scores = (0.0, -1.0, -1.0, -1.0)[: len(one.continuations)]
            yield Reply(id=one.id, logprobs=scores, text="")

    whole = {request.id: request for request in rehearsed(requests)}
    assert whole.keys() == {request.id for request in requests}
    for reply, context in contexts(requests, asked(first, requests)):
        assert whole[reply.id].context == context


def chain(*requests: Request) -> list[Request]:
    return [
        replace(request, id=str(k), after=str(k - 1) if k else "")
        for k, request in enumerate(requests)
    ]


def test_logits_decide_where_there_are_any_and_the_first_of_equals() -> None:
    reply = Reply(id="x", logprobs=(-1.0, -2.0, -3.0), logits=(1.0, 5.0, 5.0))
    assert likeliest(reply) == 1
    assert likeliest(replace(reply, logits=())) == 0
    assert likeliest(replace(reply, logits=(), logprobs=())) is None
    request = Request(id="x", context="", continuations=("A", "B", "C"))
    assert said(request, reply) == "B"
    written = Request(id="x", context="", max_new_tokens=3)
    assert said(written, Reply(id="x", logprobs=(), text="so")) == "so"


def test_the_unanswered_is_followed_by_an_empty_answer() -> None:
    letters = Request(id="", context="1)", continuations=LETTERS)
    text = Request(id="", context="2)", max_new_tokens=5)
    seen: list[str] = []

    def ask(requests: Sequence[Request]) -> Iterator[Reply]:
        seen.extend(request.context for request in requests)
        return (Reply(id=request.id, logprobs=()) for request in requests)

    assert len(list(asked(ask, chain(letters, text, letters)))) == 3
    assert seen == ["1)", "1)2)", "1)2)1)"]


@pytest.mark.parametrize(
    ("requests", "words"),
    [
        ([Request(id="b", context="", after="a")], "b: it follows 'a', which is not asked"),
        (
            [Request(id="a", context="", after="b"), Request(id="b", context="", after="a")],
            "a: the requests that it follows lead back to itself",
        ),
        ([Request(id="a", context="", after="a")], "a: the requests that it follows lead back"),
        (
            [
                Request(id="a", context="", continuations=("A",), max_new_tokens=3),
                Request(id="b", context="", after="a"),
            ],
            "b: it follows 'a', which is answered twice",
        ),
        (
            [
                Request(id="a", context=""),
                Request(id="a", context=""),
                Request(id="b", context="", after="a"),
            ],
            "a: two requests of one call have this id",
        ),
    ],
)
def test_a_chain_that_cannot_be_followed_is_a_sentence_before_anything_is_asked(
    requests: list[Request], words: str
) -> None:
    oracle = Oracle()
    with pytest.raises(PromptError, match=words) as found:
        list(asked(oracle.ask, requests))
    assert not oracle.calls
    assert str(found.value).endswith(".")
    assert "\n" not in str(found.value)


def test_replies_to_what_was_not_asked_and_missing_ones_are_errors() -> None:
    requests = chain(*[Request(id="", context="c", continuations=LETTERS)] * 2)
    twice = Reply(id="0", logprobs=(0.0,) * 4)
    with pytest.raises(ModelError, match="0: the backend answered what was not asked, or twice"):
        list(asked(lambda _: iter([twice, twice]), requests))
    with pytest.raises(ModelError, match="2 requests were not answered"):
        list(asked(lambda _: iter([]), requests))


def test_a_call_without_chains_streams_as_it_is() -> None:
    def ask(requests: Sequence[Request]) -> Iterator[Reply]:
        yield from (Reply(id=request.id, logprobs=()) for request in requests)
        raise ModelError("gone.")

    stream = asked(ask, [Request(id=str(k), context="") for k in range(2)])
    assert [next(stream).id, next(stream).id] == ["0", "1"]
    with pytest.raises(ModelError, match="gone"):
        next(stream)


def test_a_real_model_is_asked_as_if_each_question_were_put_by_itself(tiny_model: Path) -> None:
    backend = HFBackend(ModelSpec(path=str(tiny_model), dtype="float32"))
    passages = ["Water and ice.", "中国的首都是北京。", "1+1=2"]
    requests = [
        replace(request, id=f"{n}#{k}", after=f"{n}#{k - 1}" if k else "")
        for n, passage in enumerate(passages)
        for k, request in enumerate(
            [
                Request(id="", context=f"{passage}\n(1)", continuations=LETTERS),
                Request(id="", context="\n(2)", continuations=LETTERS[:3]),
                Request(id="", context="\n(3)", continuations=(" water", " 北京")),
            ]
        )
    ]
    found = {reply.id: (reply, c) for reply, c in contexts(requests, asked(backend.ask, requests))}
    assert found.keys() == {request.id for request in requests}
    for n in range(len(passages)):
        context = ""
        for request in requests[3 * n : 3 * n + 3]:
            context += request.context
            alone = Request(id="x", context=context, continuations=request.continuations)
            (expected,) = backend.ask([alone])
            reply, told = found[request.id]
            assert told == context
            assert reply.logprobs == pytest.approx(expected.logprobs, abs=1e-4)
            scores = expected.logits or expected.logprobs
            context += request.continuations[scores.index(max(scores))]
