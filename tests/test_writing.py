"""What a model writes is what transformers' own greedy generation writes, whoever is asked."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ceval_suite.backends import open_backend, seq2seq, transport, wire, writing
from ceval_suite.backends.base import Backend
from ceval_suite.backends.hf import HFBackend
from ceval_suite.backends.rounds import contexts
from ceval_suite.backends.tokens import Encoder
from ceval_suite.errors import ModelError, PromptError
from ceval_suite.model_spec import ModelSpec
from ceval_suite.schema import Reply, Request
from tests import vllm_like
from tests.serving import Engine, Served, serving

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

LENGTH = 24
PROMPTS = ["1+1=?\n答案：", "The answer is", "Water and ice are", "中国的首都是", "long " * 30]
LETTERS = ("A", "B", "C", "D")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "BACKOFF", 0.01)


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> Engine:
    return Engine(tiny_model)


@pytest.fixture(scope="module")
def greedy(tiny_model: Path) -> Callable[..., str]:
    """transformers' own greedy generation, one prompt at a time."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(tiny_model)
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_model)
    known: dict[tuple[str, int], str] = {}

    def write(context: str, most: int = LENGTH) -> str:
        if (context, most) not in known:
            ids = tokenizer(context, return_tensors="pt")
            out = model.generate(**ids, max_new_tokens=most, do_sample=False, pad_token_id=2)
            made = out[0, ids["input_ids"].shape[1] :]
            known[context, most] = tokenizer.decode(made, skip_special_tokens=True)
        return known[context, most]

    return write


@pytest.fixture
def asked(greedy: Callable[..., str]) -> list[Request]:
    """Prompts with stop strings that do come, and with ones that do not."""
    out: list[Request] = []
    for k, prompt in enumerate(PROMPTS):
        text = greedy(prompt)
        stops = [(), ("\n\n问题", "zzzzz"), ("zzzzz", text[7:9], text[12:14])][k % 3]
        out.append(Request(id=f"w{k}", context=prompt, max_new_tokens=LENGTH, stop=stops))
    return out


def cut(text: str, stop: Sequence[str]) -> str:
    return text[: min([text.index(one) for one in stop if one in text] or [len(text)])]


def check(
    replies: Sequence[Reply], asked: Sequence[Request], greedy: Callable[..., str], encoder: Any
) -> None:
    """Texts, ends and lengths are those of plain greedy generation."""
    found = {reply.id: reply for reply in replies}
    assert found.keys() == {request.id for request in asked}
    ended = 0
    for request in asked:
        reply, text = found[request.id], greedy(request.context, request.max_new_tokens)
        assert reply.text == cut(text, request.stop)
        assert reply.finished == any(one in text for one in request.stop)
        assert reply.num_tokens == len(encoder.ids([request.context], special=True)[0])
        assert 0 < reply.written <= request.max_new_tokens
        assert (reply.written == request.max_new_tokens) == (not reply.finished)
        ended += reply.finished
    assert 0 < ended < len(asked)


@pytest.fixture(scope="module")
def encoder(engine: Engine) -> Encoder:
    return Encoder(engine.tokenizer)


def spec(served: Served, **more: Any) -> ModelSpec:
    options = {"retries": 0, "timeout": 20, **more.pop("options", {})}
    return ModelSpec(backend="server", path="tiny", url=served.url, options=options, **more)


def one_sentence(error: BaseException) -> str:
    text = str(error)
    assert text.endswith("."), text
    assert "\n" not in text, text
    return text


# what all have in common -----------------------------------------------------------------------


@given(st.text("ab\n答", max_size=30), st.lists(st.text("ab\n答", max_size=3), max_size=5))
def test_a_text_is_cut_where_the_first_stop_string_begins(text: str, stop: list[str]) -> None:
    found, stopped = writing.cut(text, stop)
    real = [one for one in stop if one]
    assert stopped == any(one in text for one in real)
    assert text.startswith(found)
    assert not any(one in found for one in real)
    if stopped:
        assert any(text[len(found) :].startswith(one) for one in real)
    else:
        assert found == text


def test_two_halves_are_one_reply() -> None:
    scored = Reply(id="x", logprobs=(-1.0,), logits=(2.0,), num_tokens=5, new_tokens=3)
    written = Reply(id="x", logprobs=(), num_tokens=5, new_tokens=1, text="t", written=7)
    assert writing.joined(scored, None) is scored
    assert writing.joined(None, written) is written
    both = writing.joined(scored, replace(written, finished=False))
    assert both == replace(scored, new_tokens=4, text="t", finished=False, written=7)


# servers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("ids", [False, True], ids=["text", "token ids"])
def test_a_server_writes_what_transformers_writes(
    ids: bool,
    engine: Engine,
    tiny_model: Path,
    asked: list[Request],
    greedy: Callable[..., str],
    encoder: Encoder,
) -> None:
    said: list[str] = []
    with serving(engine) as served:
        backend = open_backend(
            spec(served, tokenizer=str(tiny_model) if ids else None), said.append
        )
        check(list(backend.ask(asked)), asked, greedy, encoder)
        prompts = [body["prompt"] for body in served.bodies[-len(asked) :]]
    assert all(isinstance(prompt, list if ids else str) for prompt in prompts)
    assert backend.describe()["items"]["written"] == len(asked)
    assert backend.describe()["path"]["greedy"] is True
    assert not any("two different texts" in line for line in said)


def test_stop_strings_beyond_the_fourth_are_cut_here(
    engine: Engine, greedy: Callable[..., str]
) -> None:
    text = greedy(PROMPTS[1])
    stop = ("zzzzz1", "zzzzz2", "zzzzz3", "zzzzz4", text[5:8])
    request = Request(id="x", context=PROMPTS[1], max_new_tokens=LENGTH, stop=stop)
    with serving(engine) as served:
        (reply,) = open_backend(spec(served)).ask([request])
        assert served.bodies[-1]["stop"] == list(stop[:4])
    assert reply.text == cut(text, stop)
    assert reply.finished


def test_a_stop_string_that_a_server_leaves_in_is_cut_off(engine: Engine) -> None:
    def twist(body: dict[str, Any], reply: Any) -> Any:
        if "logprobs" not in body:
            reply["choices"][0] = {"text": "B，因为\n\n问题：下一个", "finish_reason": "length"}
        return reply

    request = Request(id="x", context="1", max_new_tokens=LENGTH, stop=("\n\n",))
    with serving(engine, twist=twist) as served:
        (reply,) = open_backend(spec(served)).ask([request])
    assert (reply.text, reply.finished) == ("B，因为", True)


def test_a_chat_server_writes_in_its_own_turn(engine: Engine, greedy: Callable[..., str]) -> None:
    request = Request(
        id="x", context="1+1=?\n", max_new_tokens=LENGTH, stop=("zzz",), template_tokens=True
    )
    with serving(engine, lists=True) as served:
        (reply,) = open_backend(spec(served, options={"api": "chat"})).ask([request])
    ids = engine.ids("<s>U: 1+1=?\nA:")
    assert reply.text == engine.write(ids, LENGTH, [])[0]
    assert not reply.finished
    assert reply.num_tokens == len(ids)


def test_a_server_without_log_probabilities_can_still_write(
    engine: Engine, asked: list[Request], greedy: Callable[..., str], encoder: Encoder
) -> None:
    def twist(_body: dict[str, Any], reply: Any) -> Any:
        reply["choices"][0].pop("logprobs", None)
        return reply

    letters = Request(id="x", context="1+1=", continuations=LETTERS)
    with serving(engine, twist=twist) as served:
        backend = open_backend(spec(served))
        check(list(backend.ask(asked)), asked, greedy, encoder)
        before = len(served.bodies)
        with pytest.raises(ModelError, match="no log-probabilities") as found:
            list(backend.ask([*asked, letters]))
        assert len(served.bodies) == before, "refused before anything is asked"
    one_sentence(found.value)


def test_a_server_that_draws_by_chance_is_told_of_once(
    engine: Engine, asked: list[Request]
) -> None:
    def twist(body: dict[str, Any], reply: Any) -> Any:
        if "logprobs" not in body:
            reply["choices"][0]["text"] += str(len(served.bodies))
        return reply

    said: list[str] = []
    with serving(engine, twist=twist) as served:
        backend = open_backend(spec(served), said.append)
        for _ in range(2):
            assert len(list(backend.ask(asked[:1]))) == 1
    assert sum("two different texts after one prompt" in line for line in said) == 1
    assert backend.describe()["path"]["greedy"] is False


def test_penalties_are_switched_off_where_the_server_knows_their_names(engine: Engine) -> None:
    request = Request(id="x", context="1+1=", max_new_tokens=3)
    with serving(engine) as served:
        list(open_backend(spec(served)).ask([request]))
        assert served.bodies[-1]["repetition_penalty"] == 1.0

    def behave(_n: int, _path: str, body: dict[str, Any]) -> Any:
        strict = "repetition_penalty" in body
        return (400, {}, {"error": "unknown repetition_penalty"}) if strict else None

    with serving(engine, behave=behave) as served:
        (reply,) = open_backend(spec(served)).ask([request])
        assert "repetition_penalty" not in served.bodies[-1]
    assert reply.text == engine.write(engine.ids("1+1="), 3, [])[0]


def test_scored_and_written_after_is_one_reply_of_two_requests(
    engine: Engine, greedy: Callable[..., str], tiny_model: Path
) -> None:
    request = Request(id="x", context="1+1=", continuations=LETTERS, max_new_tokens=5)
    (expected,) = HFBackend(ModelSpec(path=str(tiny_model), dtype="float32")).ask(
        [replace(request, max_new_tokens=0)]
    )
    with serving(engine, echo=False) as served:
        backend = open_backend(spec(served, options={"top_logprobs": 5000}))
        list(backend.ask([replace(request, continuations=())]))
        before = len(served.bodies)
        (reply,) = backend.ask([request])
        assert len(served.bodies) - before == 2
    assert reply.logprobs == pytest.approx(expected.logprobs, abs=1e-4)
    assert reply.text == greedy("1+1=", 5)
    assert reply.written == 5


def _chain(backend: Backend, greedy: Callable[..., str], tiny_model: Path) -> None:
    """Letter, then a text, then a letter after that: each as if it were asked by itself."""
    requests = [
        Request(id="a", context="1+1=?\n答案：", continuations=LETTERS),
        Request(id="b", context="，因为", max_new_tokens=6, after="a", joint="\n"),
        Request(id="c", context="\n答案：", continuations=LETTERS, after="b"),
    ]
    found = {reply.id: (reply, c) for reply, c in contexts(requests, backend.ask(requests))}
    hf = HFBackend(ModelSpec(path=str(tiny_model), dtype="float32"))
    (first,) = hf.ask(requests[:1])
    assert found["a"][0].logprobs == pytest.approx(first.logprobs, abs=1e-4)
    context = requests[0].context + "\n" + LETTERS[first.logits.index(max(first.logits))] + "，因为"
    assert found["b"][1] == context
    assert found["b"][0].text == greedy(context, 6)
    context += greedy(context, 6) + "\n答案："
    (last,) = hf.ask([replace(requests[2], context=context, after="")])
    assert found["c"][1] == context
    assert found["c"][0].logprobs == pytest.approx(last.logprobs, abs=1e-4)


def test_a_chain_goes_on_from_what_the_server_answered(
    engine: Engine, greedy: Callable[..., str], tiny_model: Path
) -> None:
    with serving(engine) as served:
        _chain(open_backend(spec(served)), greedy, tiny_model)


def test_a_chain_whose_end_cannot_be_scored_is_refused_at_its_start(engine: Engine) -> None:
    requests = [
        Request(id="a", context="1+1=", max_new_tokens=3),
        Request(id="b", context="so", continuations=(" whole words", " and more"), after="a"),
    ]
    with serving(engine, echo=False) as served:
        backend = open_backend(spec(served))
        before = len(served.bodies)
        with pytest.raises(ModelError, match="several tokens need") as found:
            list(backend.ask(requests))
        assert len(served.bodies) == before
    one_sentence(found.value)


def test_a_busy_server_is_asked_again_and_one_that_dies_keeps_what_it_wrote(
    engine: Engine, asked: list[Request], greedy: Callable[..., str], encoder: Encoder
) -> None:
    with serving(engine) as served:
        backend = open_backend(spec(served, options={"retries": 2, "concurrency": 1}))
        list(backend.ask(asked[:1]))
        at = len(served.bodies)
        served.behave = lambda n, _p, _b: (503, {}, {}) if n in (at, at + 2, at + 3) else None
        check(list(backend.ask(asked)), asked, greedy, encoder)
        assert len(served.bodies) == at + len(asked) + 3
        at = len(served.bodies)
        served.behave = lambda n, _p, _b: (400, {}, {"error": "too long"}) if n == at + 3 else None
        kept: list[str] = []
        with pytest.raises(ModelError, match=r"w3: .* answered 400 \(too long\)") as found:
            kept.extend(reply.id for reply in backend.ask(asked))
        one_sentence(found.value)
    assert kept == ["w0", "w1", "w2"]


def test_several_texts_are_under_way_at_once_and_no_more_than_allowed(
    engine: Engine, asked: list[Request]
) -> None:
    with serving(engine, pause=0.02) as served:
        backend = open_backend(spec(served, options={"concurrency": 3}))
        served.busiest = 0
        assert len(list(backend.ask(asked))) == len(asked)
        assert 2 <= served.busiest <= 3


def test_what_does_not_fit_behind_the_prompt_is_refused(engine: Engine, tiny_model: Path) -> None:
    request = Request(id="x", context="long " * 20, max_new_tokens=50)
    with serving(engine) as served:
        backend = open_backend(spec(served, tokenizer=str(tiny_model), max_length=60))
        with pytest.raises(
            PromptError, match=r"x: \d+ tokens and 50 to write where .* 60"
        ) as found:
            list(backend.ask([request]))
    one_sentence(found.value)


def test_a_request_for_nothing_is_refused(engine: Engine) -> None:
    with serving(engine) as served:
        backend = open_backend(spec(served))
        with pytest.raises(PromptError, match="x: there is no continuation to score, nor any"):
            list(backend.ask([Request(id="x", context="1")]))


def test_what_a_server_writes_is_read_from_either_shape() -> None:
    def text(choice: dict[str, Any], made: int | None = None) -> tuple[str, bool]:
        usage = {} if made is None else {"completion_tokens": made}
        return wire.written({"choices": [choice], "usage": usage}, 5)

    assert text({"text": "a", "finish_reason": "stop"}) == ("a", True)
    assert text({"text": "a", "finish_reason": "length"}) == ("a", False)
    assert text({"message": {"content": "a"}, "finish_reason": "stop"}) == ("a", True)
    # still thinking when its tokens ran out
    assert text({"message": {"content": None}, "finish_reason": "length"}) == ("", False)
    # nothing says why it ended
    assert text({"text": "a"}) == ("a", True)
    assert text({"text": "a"}, 5) == ("a", False)
    assert text({"text": "a"}, 4) == ("a", True)
    for broken in ({}, {"message": {}}, {"text": 7}):
        with pytest.raises(wire.NotProved, match="no text"):
            text(broken)


def test_a_server_that_answers_no_text_is_a_sentence(engine: Engine) -> None:
    def twist(body: dict[str, Any], reply: Any) -> Any:
        return reply if "logprobs" in body else {"choices": [{"finish_reason": "stop"}]}

    with serving(engine, twist=twist) as served:
        backend = open_backend(spec(served))
        with pytest.raises(ModelError, match=r"cannot write, because .* no text") as found:
            list(backend.ask([Request(id="x", context="1", max_new_tokens=3)]))
    one_sentence(found.value)


# tokens of whole options -----------------------------------------------------------------------


@pytest.mark.parametrize("who", ["server", "server with tokenizer", "vllm", "lm_eval"])
def test_the_tokens_of_each_continuation_are_counted(
    who: str, engine: Engine, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", vllm_like.module(engine))
    options = (" water and ice", " the", " Water")
    request = Request(id="x", context="The answer is", continuations=options)
    letters = Request(id="y", context="1+1=", continuations=LETTERS)
    with serving(engine) as served:
        plan = {
            "server": spec(served),
            "server with tokenizer": spec(served, tokenizer=str(tiny_model)),
            "vllm": ModelSpec(backend="vllm", path=str(tiny_model)),
            "lm_eval": harness(tiny_model),
        }[who]
        found = {r.id: r.lengths for r in open_backend(plan).ask([request, letters])}
    whole = len(engine.ids(request.context))
    assert found["x"] == tuple(len(engine.ids(request.context + c)) - whole for c in options)
    assert len(set(found["x"])) > 1
    assert found["y"] == (1, 1, 1, 1)


# ColossalEval's readings -----------------------------------------------------------------------

READ = Request(
    id="x",
    context="1+1=?\nAnswer: ",
    continuations=LETTERS,
    read_as=("Answer: ", "答案："),
)


def _read(engine: Engine) -> tuple[list[float], float]:
    """The larger of each letter's two log-probabilities and their sum as probabilities, by hand."""
    last = engine.logprobs(engine.ids(READ.context))[-1]
    pairs = [[engine.ids(text + letter)[-1] for text in READ.read_as] for letter in LETTERS]
    assert any(a != b for a, b in pairs), "readings that are all the same show nothing"
    values = [max(float(last[a]), float(last[b])) for a, b in pairs]
    return values, sum(map(math.exp, values))


@pytest.mark.parametrize("echo", [True, False])
def test_a_server_of_a_known_tokenizer_reads_letters_as_colossaleval_does(
    echo: bool, engine: Engine, tiny_model: Path
) -> None:
    with serving(engine, echo=echo) as served:
        options = {"top_logprobs": 20 if echo else 5000}
        backend = open_backend(spec(served, tokenizer=str(tiny_model), options=options))
        (reply,) = backend.ask([READ])
        (shown,) = backend.audit([READ])
    values, mass = _read(engine)
    assert reply.logprobs == pytest.approx(values, abs=1e-4)
    assert reply.choice_mass == pytest.approx(mass, rel=1e-3)
    assert shown["one_token"]
    assert len(shown["continuations"]) > len(LETTERS)


def test_a_letter_is_bounded_only_where_no_reading_of_it_was_returned(
    engine: Engine, tiny_model: Path
) -> None:
    values, _ = _read(engine)
    row = engine.logprobs(engine.ids(READ.context))[-1]
    ranks = sorted(int((row > value + 1e-6).sum()) for value in values)
    with serving(engine, echo=False) as served:
        # the letters that are less likely than the second one are left out
        options = {"top_logprobs": ranks[2]}
        backend = open_backend(spec(served, tokenizer=str(tiny_model), options=options))
        (reply,) = backend.ask([READ])
    assert len(reply.bounded) == 2
    seen = [value for k, value in enumerate(values) if k not in reply.bounded]
    assert reply.choice_mass == pytest.approx(sum(map(math.exp, seen)), rel=1e-3)
    for k, logprob in enumerate(reply.logprobs):
        if k in reply.bounded:
            assert values[k] - 1e-5 <= logprob < min(seen)
        else:
            assert logprob == pytest.approx(values[k], abs=1e-4)


def test_readings_need_token_ids(engine: Engine, tiny_model: Path) -> None:
    with serving(engine) as served:
        backend = open_backend(spec(served))
        before = len(served.bodies)
        with pytest.raises(ModelError, match=r"reads letters by token ids, .* backend hf") as found:
            list(backend.ask([READ]))
        assert len(served.bodies) == before
    one_sentence(found.value)
    with pytest.raises(ModelError, match="which lm-eval does not take") as found:
        list(open_backend(harness(tiny_model)).ask([READ]))
    one_sentence(found.value)


def test_letters_that_end_in_one_token_are_refused(engine: Engine, tiny_model: Path) -> None:
    request = replace(READ, continuations=("A", "BA"), read_as=("答案：",))
    with serving(engine) as served:
        backend = open_backend(spec(served, tokenizer=str(tiny_model)))
        with pytest.raises(PromptError, match="the same tokens") as found:
            list(backend.ask([request]))
    one_sentence(found.value)


# vLLM ------------------------------------------------------------------------------------------


@pytest.fixture(params=["by id", "older"])
def vllm(request: Any, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The stand-in for vLLM, in both shapes that versions have."""
    params: Any = {"by id": vllm_like.SamplingParams, "older": vllm_like.OlderSamplingParams}
    found = vllm_like.module(engine, params[request.param])
    monkeypatch.setitem(sys.modules, "vllm", found)
    return found


def test_vllm_is_asked_for_what_transformers_writes(
    vllm: Any,
    tiny_model: Path,
    asked: list[Request],
    greedy: Callable[..., str],
    encoder: Encoder,
) -> None:
    backend = open_backend(ModelSpec(backend="vllm", path=str(tiny_model)))
    check(list(backend.ask(asked)), asked, greedy, encoder)
    assert vllm.arguments["enable_prefix_caching"] is True
    (call,) = [call for call in vllm.calls if call[0][1].max_tokens == LENGTH]
    assert len(call) == len(asked)


def test_vllm_scores_writes_and_follows_chains(
    vllm: Any, engine: Engine, tiny_model: Path, greedy: Callable[..., str]
) -> None:
    backend = open_backend(ModelSpec(backend="vllm", path=str(tiny_model)))
    _chain(backend, greedy, tiny_model)
    both = Request(id="y", context="1+1=", continuations=LETTERS, max_new_tokens=5)
    options = Request(id="z", context="The answer is", continuations=(" water and", " 中国"))
    replies = {reply.id: reply for reply in backend.ask([both, READ, options])}
    hf = HFBackend(ModelSpec(path=str(tiny_model), dtype="float32"))
    for expected in hf.ask([replace(both, max_new_tokens=0), options]):
        assert replies[expected.id].logprobs == pytest.approx(expected.logprobs, abs=1e-4)
    assert replies["y"].text == greedy("1+1=", 5)
    values, mass = _read(engine)
    assert replies["x"].logprobs == pytest.approx(values, abs=1e-4)
    assert replies["x"].choice_mass == pytest.approx(mass, rel=1e-3)


def test_vllm_refuses_what_does_not_fit(vllm: Any, tiny_model: Path) -> None:
    backend = open_backend(ModelSpec(backend="vllm", path=str(tiny_model)))
    with pytest.raises(PromptError, match="and 600 to write where the model reads 512"):
        list(backend.ask([Request(id="x", context="1", max_new_tokens=600)]))


# lm-eval ---------------------------------------------------------------------------------------


def harness(path: Path, **more: Any) -> ModelSpec:
    options = {"lm": "hf", "batch_size": 4, **more.pop("options", {})}
    keys = {"dtype": "float32", "device": "cpu", **more}
    return ModelSpec(backend="lm_eval", path=str(path), options=options, **keys)


def test_lm_evals_own_class_writes_what_transformers_writes(
    tiny_model: Path, asked: list[Request], greedy: Callable[..., str], encoder: Encoder
) -> None:
    replies = list(open_backend(harness(tiny_model)).ask(asked))
    assert [reply.id for reply in replies] == [request.id for request in asked]
    for request, reply in zip(asked, replies, strict=True):
        text = greedy(request.context)
        assert reply.text == cut(text, request.stop)
        assert reply.num_tokens == len(encoder.ids([request.context], special=True)[0])
        assert reply.written == len(encoder.ids([str(reply.text)], special=False)[0])
        shorter = reply.written < LENGTH and not str(reply.text).endswith("\ufffd")
        assert reply.finished == (shorter or reply.text != text)


def test_a_checkpoints_own_penalty_does_not_reach_lm_evals_class(
    copy: Path, greedy: Callable[..., str]
) -> None:
    import json

    path = copy / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "repetition_penalty": 5.0}))
    request = Request(id="x", context=PROMPTS[1], max_new_tokens=LENGTH)
    (reply,) = open_backend(harness(copy)).ask([request])
    assert reply.text == greedy(PROMPTS[1])


def test_lm_evals_own_class_follows_chains_and_gives_both(
    tiny_model: Path, greedy: Callable[..., str]
) -> None:
    backend = open_backend(harness(tiny_model))
    _chain(backend, greedy, tiny_model)
    both = Request(id="y", context="1+1=", continuations=LETTERS, max_new_tokens=5)
    (reply,) = backend.ask([both])
    assert (len(reply.logprobs), reply.text) == (4, greedy("1+1=", 5))


def test_lm_eval_refuses_what_does_not_fit(tiny_model: Path) -> None:
    backend = open_backend(harness(tiny_model, max_length=64))
    with pytest.raises(PromptError, match="and 64 to write where the model reads 64"):
        list(backend.ask([Request(id="x", context="1+1=", max_new_tokens=64)]))


# an encoder and a decoder ----------------------------------------------------------------------


def test_an_encoder_and_a_decoder_write_in_batches_what_each_prompt_gives_by_itself(
    tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(5)
    shape = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    names = {"decoder_start_token_id": 2, "eos_token_id": 1, "pad_token_id": 2}
    config = T5Config(vocab_size=len(tiny_tokenizer), **shape, **names)
    model: Any = T5ForConditionalGeneration(config).eval()
    # at its own initialisation such a model repeats one token
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.4)
    encoder = Encoder(tiny_tokenizer, apart=True)
    full: dict[str, str] = {}
    made: dict[str, list[int]] = {}
    for prompt in PROMPTS:
        ids = torch.tensor([encoder.heads([Request(id="", context=prompt)])[0].tolist()])
        out = model.generate(ids, max_new_tokens=LENGTH, do_sample=False, num_beams=1)
        made[prompt] = out[0, 1:].tolist()
        full[prompt] = tiny_tokenizer.decode(made[prompt], skip_special_tokens=True)
    assert len(set(full.values())) == len(PROMPTS)
    requests = [
        Request(id=f"w{k}", context=prompt, max_new_tokens=LENGTH, stop=stop)
        for k, prompt in enumerate(PROMPTS)
        for stop in [(full[prompt][5:7],) if k % 2 else ("zzzzz",)]
    ]
    # a checkpoint's own settings for writing are not greedy
    model.generation_config.num_beams = 3
    model.generation_config.repetition_penalty = 4.0
    monkeypatch.setattr(seq2seq, "TOGETHER", 3)
    heads = encoder.heads(requests)
    with torch.inference_mode():
        replies = {r.id: r for r in seq2seq.texts(model, tiny_tokenizer, heads, requests)}
    assert model.generation_config.num_beams == 3
    for request, head in zip(requests, heads, strict=True):
        reply = replies[request.id]
        assert reply.text == cut(full[request.context], request.stop)
        assert reply.num_tokens == len(head)
        assert reply.finished == ("zzzzz" not in request.stop)
        # as many tokens as it took until the stop string was there
        texts = [tiny_tokenizer.decode(made[request.context][:n]) for n in range(LENGTH + 1)]
        first = [n for n, text in enumerate(texts) if request.stop[0] in text]
        assert reply.written == (first or [LENGTH])[0]
    assert len({reply.written for reply in replies.values()}) > 1
