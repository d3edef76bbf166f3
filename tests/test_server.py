"""Servers are believed only as far as they prove it; what they cannot say is never guessed."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ceval_suite import cli
from ceval_suite.backends import identify, open_backend, transport, wire
from ceval_suite.backends.hf import HFBackend
from ceval_suite.catalog import load_model_spec, override
from ceval_suite.errors import ConfigError, ModelError, PromptError, RunError, UserError
from ceval_suite.model_spec import ModelSpec
from ceval_suite.prepare import Prepared, Selection, prepare
from ceval_suite.records import read_json, read_records
from ceval_suite.report.quantisation import effect
from ceval_suite.run import evaluate
from ceval_suite.schema import Reply, Request
from ceval_suite.secrecy import without_credentials
from tests.serving import Engine, Served, serving

pytestmark = pytest.mark.usefixtures("one_thread")

ALL = 5000


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "BACKOFF", 0.01)


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> Engine:
    return Engine(tiny_model)


@pytest.fixture(scope="module")
def exam() -> Prepared:
    return prepare("sample-ceval", Selection(None, 1, None, None, 2, None, False))


@pytest.fixture(scope="module")
def asked(exam: Prepared) -> list[Request]:
    return [exam.renderer(item.subject).render(item).request() for item in exam.scored()]


@pytest.fixture(scope="module")
def truth(tiny_model: Path, asked: list[Request]) -> dict[str, Reply]:
    backend = HFBackend(ModelSpec(path=str(tiny_model), dtype="float32"))
    return {reply.id: reply for reply in backend.ask(asked)}


@pytest.fixture(scope="module")
def some(engine: Engine, asked: list[Request]) -> int:
    """So many log-probabilities that all letters of some items are among them, not of others."""
    worst: list[int] = []
    for request in asked:
        row = engine.logprobs(engine.ids(request.context))[-1]
        letters = [engine.ids(letter)[0] for letter in request.continuations]
        worst.append(max(int((row > row[letter]).sum()) for letter in letters))
    worst.sort()
    assert worst[0] < worst[len(worst) // 2]
    return worst[len(worst) // 2]


def spec(served: Served, *, tokenizer: Path | None = None, **options: Any) -> ModelSpec:
    options = {"retries": 1, "timeout": 20, **options}
    name = None if tokenizer is None else str(tokenizer)
    return ModelSpec(backend="server", path="tiny", url=served.url, tokenizer=name, options=options)


def one_sentence(error: BaseException) -> str:
    text = str(error)
    assert text.endswith("."), text
    assert "\n" not in text, text
    return text


# equal to hf -----------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["echo", "next", "ids", "lists", "lists and ids"])
def test_a_server_gives_the_log_probabilities_of_hf(
    way: str, engine: Engine, tiny_model: Path, asked: list[Request], truth: dict[str, Reply]
) -> None:
    settings = {"echo": way == "echo", "lists": "lists" in way}
    tokenizer = tiny_model if "ids" in way else None
    with serving(engine, **settings) as served:
        options = {} if way == "echo" else {"top_logprobs": ALL}
        backend = open_backend(spec(served, tokenizer=tokenizer, **options))
        replies = {reply.id: reply for reply in backend.ask(asked)}
    assert replies.keys() == truth.keys()
    for name, reply in replies.items():
        assert reply.logprobs == pytest.approx(truth[name].logprobs, abs=1e-4)
        assert reply.choice_mass == pytest.approx(truth[name].choice_mass, rel=1e-3)
        assert reply.num_tokens == truth[name].num_tokens
    items = backend.describe()["items"]
    assert items["echo" if way == "echo" else "next"] == len(asked)


def test_whole_options_are_scored_from_echoed_prompts(engine: Engine, tiny_model: Path) -> None:
    request = Request(
        id="x", context="The answer is", continuations=(" water and ice", " 中国的首都", " (C)")
    )
    (expected,) = HFBackend(ModelSpec(path=str(tiny_model), dtype="float32")).ask([request])
    with serving(engine) as served:
        for tokenizer in (None, tiny_model):
            (reply,) = open_backend(spec(served, tokenizer=tokenizer)).ask([request])
            assert reply.logprobs == pytest.approx(expected.logprobs, abs=1e-4)
    with serving(engine, echo=False) as served:
        backend = open_backend(spec(served))
        with pytest.raises(ModelError, match=r"several tokens need .* \(echo\)") as found:
            list(backend.ask([request]))
        one_sentence(found.value)


def test_a_letter_is_one_request_where_the_server_returns_enough(
    engine: Engine, asked: list[Request]
) -> None:
    with serving(engine, echo=False) as served:
        backend = open_backend(spec(served, top_logprobs=ALL))
        before = len(served.bodies)
        assert len(list(backend.ask(asked))) == len(asked)
        assert len(served.bodies) - before == len(asked)


def test_a_chat_server_is_read_at_the_first_token_of_its_turn(engine: Engine) -> None:
    request = Request(
        id="x",
        context="1+1=?\nA. 2\nB. 3\n答案：",
        continuations=(" A", " B"),
        template_tokens=True,
    )
    ids = engine.ids("<s>U: 1+1=?\nA. 2\nB. 3\n答案：\nA:")
    last = engine.logprobs(ids)[-1]
    with serving(engine, lists=True) as served:
        backend = open_backend(spec(served, api="chat", top_logprobs=ALL))
        (reply,) = backend.ask([request])
        with pytest.raises(ModelError, match="give --chat") as found:
            list(backend.ask([Request(id="y", context="1", continuations=("A", "B"))]))
    one_sentence(found.value)
    for k, letter in enumerate("AB"):
        same = [i for i, text in enumerate(engine.texts) if text.strip() == letter]
        assert reply.logprobs[k] == pytest.approx(float(last[same].logsumexp(0)), abs=1e-4)


def test_the_tokens_of_a_chat_template_count(engine: Engine) -> None:
    with serving(engine, lists=True, entry={"max_model_len": 99}) as served:
        backend = open_backend(spec(served, api="chat"))
        assert backend.max_length == 99
        (number,) = backend.count_tokens(["1+1=?"], template_tokens=True)
    assert number == len(engine.ids("<s>U: 1+1=?\nA:"))


# labels out of sight ---------------------------------------------------------------------------


def test_labels_that_are_not_returned_stay_below_those_that_are(
    some: int, engine: Engine, asked: list[Request], truth: dict[str, Reply]
) -> None:
    with serving(engine, echo=False) as served:
        backend = open_backend(spec(served, top_logprobs=some))
        replies = {reply.id: reply for reply in backend.ask(asked)}
        items = backend.describe()["items"]
    assert items["bounded"]
    assert items["bounded"] + items["next"] + items["unanswered"] == len(asked)
    for name, reply in replies.items():
        true = truth[name].logprobs
        seen = [p for p, t in zip(reply.logprobs, true, strict=False) if abs(p - t) < 1e-4]
        assert reply.choice_mass == pytest.approx(sum(map(math.exp, seen)), abs=1e-9)
        for bound, value in zip(reply.logprobs, true, strict=False):
            if abs(bound - value) >= 1e-4:
                assert bound >= value - 1e-5
                assert all(bound < other for other in seen)
        apart = [abs(p - t) >= 1e-4 for p, t in zip(reply.logprobs, true, strict=False)]
        assert reply.bounded == tuple(k for k, far in enumerate(apart) if far)


def test_a_record_names_the_labels_of_which_only_a_bound_is_known(
    some: int, engine: Engine, exam: Prepared, tmp_path: Path, truth: dict[str, Reply]
) -> None:
    with serving(engine, echo=False) as served:
        (folder,) = evaluate("tiny", spec(served, top_logprobs=some), [exam], tmp_path)
    records = {record.id: record for record in read_records(folder / "records.jsonl")}
    lines = [json.loads(text) for text in (folder / "records.jsonl").read_text().splitlines()]
    for line in lines:
        record = records[line["id"]]
        assert line.get("bounded", []) == record.bounded
        assert "bounded" not in line or line["bounded"], "only where there is one"
        true = dict(zip("ABCD", truth[record.id].logprobs, strict=True))
        exact = {k: v for k, v in record.logprobs.items() if k not in record.bounded}
        assert exact == pytest.approx({k: true[k] for k in exact}, abs=1e-4)
        assert record.choice_mass == pytest.approx(sum(map(math.exp, exact.values())), abs=1e-9)
        if record.prediction:
            assert record.prediction == [max(true, key=true.__getitem__)]
    marked = [record for record in records.values() if record.bounded]
    assert 0 < len(marked) < len(records)
    assert read_json(folder / "summary.json")["bounded"] == len(marked)
    # without those probabilities there is no distribution to compare
    with pytest.raises(RunError, match="a server left labels out"):
        effect(list(records.values()), list(records.values()))


def test_an_item_none_of_whose_labels_is_returned_is_unanswered_not_guessed(
    engine: Engine, exam: Prepared, tmp_path: Path
) -> None:
    with serving(engine, echo=False) as served:
        (folder,) = evaluate("tiny", spec(served, top_logprobs=4), [exam], tmp_path)
    records = list(read_records(folder / "records.jsonl"))
    missed = [record for record in records if not record.prediction]
    assert missed
    for record in missed:
        assert (record.correct, record.score, record.logprobs, record.tie) == (False, 0, {}, False)
    assert read_json(folder / "summary.json")["unanswered"] == len(missed)
    assert read_json(folder / "run.json")["engine"]["items"]["unanswered"] == len(missed)


def test_a_label_out_of_sight_is_scored_exactly_where_the_server_echoes(
    some: int, engine: Engine, asked: list[Request], truth: dict[str, Reply]
) -> None:
    with serving(engine) as served:
        backend = open_backend(spec(served, top_logprobs=some))
        for reply in backend.ask(asked):
            assert reply.logprobs == pytest.approx(truth[reply.id].logprobs, abs=1e-4)
        items = backend.describe()["items"]
    assert items["echo"]
    assert not items["bounded"]
    assert not items["unanswered"]


def test_a_server_that_returns_too_few_is_told_of_and_refused(
    engine: Engine, asked: list[Request]
) -> None:
    said: list[str] = []
    with serving(engine, echo=False, most=3) as served:
        backend = open_backend(spec(served), said.append)
        assert any("returns 3 log-probabilities where 20 were asked for" in line for line in said)
        with pytest.raises(ModelError, match=r"returns 3 .* where 4 letters") as found:
            list(backend.ask(asked))
    one_sentence(found.value)


def test_a_server_that_refuses_many_log_probabilities_is_asked_for_fewer(engine: Engine) -> None:
    def behave(_n: int, _path: str, body: dict[str, Any]) -> Any:
        refused = (400, {}, {"error": {"message": "logprobs must be at most 5"}})
        return refused if body["logprobs"] > 5 else None

    said: list[str] = []
    with serving(engine, behave=behave) as served:
        path = open_backend(spec(served), said.append).describe()["path"]
    assert path["top_logprobs"] == 5
    assert any("returns 5" in line for line in said)


def test_next_tokens_that_are_not_the_prompts_own_are_not_used(
    engine: Engine, asked: list[Request], truth: dict[str, Reply]
) -> None:
    def twist(body: dict[str, Any], reply: Any) -> Any:
        if not body.get("echo"):  # as where two tokens read alike and the other one is returned
            top = reply["choices"][0]["logprobs"]["top_logprobs"][0]
            for letter in "ABCD":
                top[letter] = top[letter] - 3.0
        return reply

    said: list[str] = []
    with serving(engine, twist=twist) as served:
        backend = open_backend(spec(served, top_logprobs=ALL), said.append)
        for reply in backend.ask(asked):
            assert reply.logprobs == pytest.approx(truth[reply.id].logprobs, abs=1e-4)
    assert any("scored from an echoed prompt" in line for line in said)


# liars -----------------------------------------------------------------------------------------


def _each_number(change: Callable[[float], Any]) -> Callable[[dict[str, Any], Any], Any]:
    def twist(_body: dict[str, Any], reply: Any) -> Any:
        found = reply["choices"][0]["logprobs"]
        found["token_logprobs"] = [v if v is None else change(v) for v in found["token_logprobs"]]
        found["top_logprobs"] = [
            top if top is None else {token: change(v) for token, v in top.items()}
            for top in found["top_logprobs"]
        ]
        return reply

    return twist


def _without(_body: dict[str, Any], reply: Any) -> Any:
    reply["choices"][0]["logprobs"] = None
    return reply


def _backwards(body: dict[str, Any], reply: Any) -> Any:
    found = reply["choices"][0]["logprobs"]
    if body.get("echo"):
        odd = any(text in body["prompt"] for text in ("zebra", "7310", "鸭"))
        found["token_logprobs"] = [v and (-0.1 if odd else -9.0) for v in found["token_logprobs"]]
    return reply


LIARS = {
    "no log-probabilities": _without,
    "which cannot be above 0": _each_number(lambda v: -v),
    "the same log-probabilities for different prompts": lambda _b, r: {
        "choices": [
            {
                "logprobs": {
                    "tokens": ["a"],
                    "token_logprobs": [-1.0],
                    "top_logprobs": [{"a": -1.0, "b": -2.0}],
                }
            }
        ]
    },
    "add up to": _each_number(lambda _: -0.5),
    "as a log-probability": _each_number(lambda _: "-1"),
    "nonsense is likelier than sense": _backwards,
    "without choices": lambda _b, _r: {"hello": 1},
}


@pytest.mark.parametrize("words", LIARS)
def test_a_lying_server_is_refused_before_the_first_item(
    words: str, engine: Engine, exam: Prepared, tmp_path: Path
) -> None:
    with (
        serving(engine, twist=LIARS[words]) as served,
        pytest.raises(ModelError, match=words) as found,
    ):
        evaluate("tiny", spec(served), [exam], tmp_path)
    assert "cannot be scored" in one_sentence(found.value)
    assert all(not path.read_bytes() for path in tmp_path.rglob("records.jsonl"))


def test_what_the_server_says_of_log_probabilities_is_passed_on(
    engine: Engine, asked: list[Request]
) -> None:
    def behave(_n: int, _path: str, _body: dict[str, Any]) -> Any:
        return 500, {}, {"error": {"message": "logprobs is not supported unless logits_all=True"}}

    with serving(engine, behave=behave) as served, pytest.raises(ModelError) as found:
        list(open_backend(spec(served)).ask(asked))
    assert "logits_all=True" in one_sentence(found.value)


def test_a_tokenizer_of_another_model_is_refused(
    engine: Engine, tiny_model: Path, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    other = AutoTokenizer.from_pretrained(tiny_model)
    core = json.loads(other.backend_tokenizer.to_str())
    words = core["model"]["vocab"]
    swap = {
        words["1"]: words["Z"],
        words["Z"]: words["1"],
        words[","]: words["q"],
        words["q"]: words[","],
    }
    core["model"]["vocab"] = {text: swap.get(i, i) for text, i in words.items()}
    other.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps(core))
    with serving(engine) as served, pytest.raises(ModelError, match="as another text") as found:
        open_backend(spec(served, tokenizer=tmp_path))
    one_sentence(found.value)


def test_an_adapter_that_the_server_does_not_apply_is_refused(engine: Engine) -> None:
    entry = {"parent": "base"}
    with (
        serving(engine, names=["base", "tiny"], entry=entry) as served,
        pytest.raises(ModelError, match="exactly as its base 'base'") as found,
    ):
        open_backend(spec(served))
    one_sentence(found.value)


def test_a_server_that_cuts_prompts_is_refused(engine: Engine, tiny_model: Path) -> None:
    def twist(_body: dict[str, Any], reply: Any) -> Any:
        reply["usage"]["prompt_tokens"] = min(reply["usage"]["prompt_tokens"], 20)
        return reply

    request = Request(id="x", context="long " * 40 + "答案：", continuations=("A", "B"))
    with serving(engine, twist=twist, echo=False) as served:
        backend = open_backend(spec(served, tokenizer=tiny_model, top_logprobs=ALL))
        with pytest.raises(ModelError, match="it cuts prompts") as found:
            list(backend.ask([request]))
    one_sentence(found.value)


# trouble ---------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def test_no_server_is_a_sentence() -> None:
    down = ModelSpec(
        backend="server",
        path="tiny",
        url=f"http://127.0.0.1:{free_port()}/v1",
        options={"retries": 1},
    )
    for use in (identify, open_backend):
        with pytest.raises(ModelError, match="cannot be reached") as found:
            use(down)
        one_sentence(found.value)


def test_a_wrong_name_lists_what_is_served(engine: Engine) -> None:
    with (
        serving(engine, names=["tinny", "other"]) as served,
        pytest.raises(ModelError, match="did you mean 'tinny'\\? Known: other, tinny") as found,
    ):
        identify(spec(served))
    one_sentence(found.value)


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_is_tried_again(
    status: int, engine: Engine, asked: list[Request], truth: dict[str, Reply]
) -> None:
    busy = {20, 21, 25}

    def behave(n: int, _path: str, _body: dict[str, Any]) -> Any:
        return (status, {}, {"error": "busy"}) if n in busy else None

    with serving(engine, behave=behave) as served:
        backend = open_backend(spec(served, retries=4))
        for reply in backend.ask(asked):
            assert reply.logprobs == pytest.approx(truth[reply.id].logprobs, abs=1e-4)
        assert len(served.bodies) > 25


def test_retry_after_is_respected(engine: Engine, asked: list[Request]) -> None:
    with serving(engine) as served:
        backend = open_backend(spec(served, concurrency=1))
        at = len(served.bodies)
        served.behave = lambda n, _p, _b: (429, {"Retry-After": "0.4"}, {}) if n == at else None
        assert len(list(backend.ask(asked[:1]))) == 1
        assert served.times[at + 1] - served.times[at] >= 0.4


def test_a_pause_of_hours_is_not_waited_for(engine: Engine, asked: list[Request]) -> None:
    with serving(engine) as served:
        backend = open_backend(spec(served))
        served.behave = lambda _n, _p, _b: (429, {"Retry-After": "7200"}, {})
        with pytest.raises(ModelError, match="asks for a pause of 7200 s") as found:
            list(backend.ask(asked))
    one_sentence(found.value)


def _breaks(served: Served, after: int, how: Any) -> None:
    at = len(served.bodies) + after
    served.behave = lambda n, _p, _b: how if n >= at else None


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ((429, {}, {"error": {"message": "slow down"}}), r"answered 429 \(slow down\), 2 times"),
        ((0, {}, None), "cannot be reached"),
        ((200, {}, b"<html>"), "not JSON"),
        (
            (400, {}, {"error": {"message": "too long"}}),
            r"sample-ceval/.*answered 400 \(too long\)",
        ),
    ],
    ids=["429 for ever", "dies", "html", "400"],
)
def test_what_breaks_half_way_keeps_its_records_and_a_second_run_goes_on(
    how: Any, words: str, engine: Engine, exam: Prepared, tmp_path: Path
) -> None:
    with serving(engine) as served:
        plan = spec(served, concurrency=2)
        open_backend(plan)
        _breaks(served, len(served.bodies) + 5 * 4, how)
        with pytest.raises(ModelError, match=words) as found:
            evaluate("tiny", plan, [exam], tmp_path)
        one_sentence(found.value)
        (path,) = tmp_path.rglob("records.jsonl")
        kept = {record.id for record in read_records(path)}
        assert 0 < len(kept) < len(exam.scored())
        served.behave = lambda _n, _p, _b: None
        served.bodies.clear()
        (folder,) = evaluate("tiny", plan, [exam], tmp_path)
    texts = {str(body["prompt"]) for body in served.bodies}
    for item in exam.scored():
        prompt = exam.renderer(item.subject).render(item)
        assert any(prompt.text in text for text in texts) == (item.id not in kept)
    assert read_json(folder / "summary.json")["complete"]


def test_a_slow_server_is_given_up_after_two_tries(engine: Engine, asked: list[Request]) -> None:
    with serving(engine) as served:
        backend = open_backend(spec(served, retries=9, concurrency=1))
        slow = open_backend(spec(served, retries=9, timeout=5, concurrency=1))
        slow.transport._client.timeout = httpx.Timeout(0.2)
        served.pause = 1.0
        at = len(served.bodies)
        with pytest.raises(ModelError, match=r"gave no answer within 5 s .*, 2 times") as found:
            list(slow.ask(asked))
        assert len(served.bodies) - at == 2
        served.pause = 0.0
        assert len(list(backend.ask(asked[:1]))) == 1
    one_sentence(found.value)


def test_no_more_requests_are_under_way_than_allowed(engine: Engine, asked: list[Request]) -> None:
    with serving(engine, echo=False, pause=0.02) as served:
        backend = open_backend(spec(served, concurrency=3, top_logprobs=ALL))
        served.busiest = 0
        list(backend.ask(asked))
        assert 2 <= served.busiest <= 3


def test_the_rate_limit_is_kept(engine: Engine, asked: list[Request]) -> None:
    with serving(engine, echo=False) as served:
        backend = open_backend(spec(served, top_logprobs=ALL, per_minute=600))
        at = len(served.bodies)
        list(backend.ask(asked))
        times = served.times[at:]
    # sent 0.1 s apart; arrival may lag a little
    assert times[-1] - times[0] >= 0.1 * (len(times) - 1) - 0.08


def test_finished_work_is_kept_when_one_fails() -> None:
    begun: list[int] = []

    def work(n: int) -> int:
        begun.append(n)
        if n == 5:
            raise ModelError("five.")
        return n

    got: list[int] = []
    with pytest.raises(ModelError, match=r"five\."):
        got.extend(transport.each(work, range(100), 1))
    assert begun == [0, 1, 2, 3, 4, 5]
    seen: list[int] = []
    with pytest.raises(ModelError, match=r"five\."):  # noqa: PT012
        for one in transport.each(work, range(100), 4):
            seen.append(one)
    assert len(seen) >= 1
    assert 5 not in seen


def test_an_abandoned_question_stops_its_threads() -> None:
    count = threading.active_count()
    stream = transport.each(lambda n: time.sleep(0.01) or n, range(10_000), 4)
    assert next(stream) in range(4)
    stream.close()
    time.sleep(0.2)
    assert threading.active_count() <= count


# fitting ---------------------------------------------------------------------------------------


def test_prompts_are_fitted_by_the_servers_own_count(engine: Engine, tmp_path: Path) -> None:
    exam = prepare("sample-ceval", Selection(None, 5, None, ["computing"], 2, None, False))
    item = exam.scored()[0]
    full = len(engine.ids(exam.renderer("computing").render(item).text))
    with serving(engine, entry={"max_model_len": full - 20}) as served:
        (folder,) = evaluate("tiny", spec(served), [exam], tmp_path)
    first = next(iter(read_records(folder / "records.jsonl")))
    assert first.shots < 5
    assert 0 < first.prompt_tokens < full - 20


def test_without_a_count_nothing_is_fitted_and_that_is_said(engine: Engine) -> None:
    said: list[str] = []
    with serving(engine, counts=False, entry={"max_model_len": 64}) as served:
        backend = open_backend(spec(served), said.append)
        assert any("not fitted" in line for line in said)
        with pytest.raises(ModelError, match="nothing counts tokens"):
            backend.count_tokens(["a"])
        wished = override(spec(served), {"max_length": 64})
        with pytest.raises(ModelError, match="max_length needs a way to count") as found:
            open_backend(wished)
    one_sentence(found.value)


def test_a_row_that_is_too_long_is_refused_not_cut(engine: Engine, tiny_model: Path) -> None:
    request = Request(id="x", context="long " * 40, continuations=("A", "B"))
    with serving(engine) as served:
        wished = override(spec(served, tokenizer=tiny_model), {"max_length": 30})
        with pytest.raises(PromptError, match="where the model reads 30"):
            list(open_backend(wished).ask([request]))


# secrets ---------------------------------------------------------------------------------------

KEY = "sk-very-secret-0123456789"
PASSWORD = "hunter2-hunter2"


def test_keys_and_passwords_are_sent_and_never_shown(
    engine: Engine,
    exam: Prepared,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("DEBUG")
    monkeypatch.setenv("MY_KEY", KEY)
    said: list[str] = []
    errors: list[str] = []
    with serving(engine) as served:
        url = served.url.replace("//", f"//user:{PASSWORD}@") + "?token=QUERYSECRET"
        plan = ModelSpec(
            backend="server", path="tiny", url=url, options={"key_env": "MY_KEY", "retries": 0}
        )
        plan = override(plan, {})
        from ceval_suite.run import Watch

        evaluate("tiny", plan, [exam], tmp_path, Watch(say=said.append))
        sent = served.headers[-1]["Authorization"]
        assert sent.startswith("Basic ") or KEY in sent
        served.behave = lambda n, _p, _b: (
            401,
            {},
            {"error": {"message": f"Incorrect key {KEY} of user:{PASSWORD}, QUERYSECRET"}},
        )
        for action in (lambda: open_backend(plan), lambda: list(open_backend(plan).ask([]))):
            with pytest.raises(ModelError) as found:
                action()
            errors.append(one_sentence(found.value))
    assert "Incorrect key *** of ***:***, ***" in errors[0]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"run.json", "records.jsonl", "summary.json"} <= {path.name for path in files}
    everything = [path.read_text() for path in files]
    everything += [*said, *errors, *capfd.readouterr(), caplog.text, str(plan.model_dump())]
    for text in everything:
        for secret in (KEY, PASSWORD, "QUERYSECRET"):
            assert secret not in text
    run = read_json(next(path for path in files if path.name == "run.json"))
    assert run["identity"]["url"] == served.url
    assert run["model"]["options"]["key_env"] == "MY_KEY"


def test_a_key_alone_goes_into_the_authorization_header(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    with serving(engine) as served:
        open_backend(spec(served, key_env="MY_KEY"))
        assert {head["Authorization"] for head in served.headers} == {f"Bearer {KEY}"}
        monkeypatch.delenv("MY_KEY")
        with pytest.raises(ModelError, match="MY_KEY, which key_env names, is not set") as found:
            open_backend(spec(served, key_env="MY_KEY"))
    one_sentence(found.value)


def test_a_key_written_into_models_yaml_is_refused_without_printing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _registered(
        tmp_path, monkeypatch, path="m", url="http://h/v1", options={"api_key": KEY, "timeout": -1}
    )
    with pytest.raises(ConfigError, match=r"options: .*api_key") as found:
        load_model_spec("mine")
    assert KEY not in str(found.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://u:p@h:8000/v1", "http://h:8000/v1"),
        ("https://h/v1?key=s", "https://h/v1"),
        ("http://u:p@[::1]:8/v1#s", "http://[::1]:8/v1"),
        ("http://[bad", "(not a URL)"),
    ],
)
def test_urls_are_shown_without_credentials(url: str, shown: str) -> None:
    assert without_credentials(url) == shown
    assert ModelSpec(backend="server", path="m", url=url).model_dump()["url"] == shown


@pytest.mark.parametrize("url", ["nonsense", "ftp://h/v1", "http://", "http://[bad", "http://h:x/"])
def test_what_is_no_url_is_a_sentence(url: str) -> None:
    with pytest.raises(ModelError, match="is not a URL") as found:
        open_backend(ModelSpec(backend="server", path="m", url=url))
    one_sentence(found.value)


@pytest.mark.parametrize("key", ["dtype", "device", "memory", "revision", "engine"])
def test_keys_that_a_server_cannot_honour_are_refused(key: str) -> None:
    value = {"dtype": "float32", "memory": "8GB", "engine": "plain"}.get(key, "cpu")
    plan = ModelSpec(backend="server", path="m", url="http://h/v1")
    with pytest.raises(ConfigError, match=f"{key} cannot be applied by backend server"):
        override(plan, {key: value})


# identity and the command line -----------------------------------------------------------------


def test_another_model_behind_the_same_address_is_another_model(
    engine: Engine, exam: Prepared, tmp_path: Path
) -> None:
    with serving(engine, entry={"root": "weights-1"}) as served:
        evaluate("tiny", spec(served), [exam], tmp_path)
        at = len(served.bodies)
        evaluate("tiny", spec(served), [exam], tmp_path)
        assert len(served.bodies) == at, "a finished run is reused without asking anything"
        served.entry = {"root": "weights-2"}
        with pytest.raises(RunError, match="another served"):
            evaluate("tiny", spec(served), [exam], tmp_path)


def test_verify_is_refused_for_what_has_no_weights_here(exam: Prepared, tmp_path: Path) -> None:
    plan = ModelSpec(backend="server", path="m", url="http://127.0.0.1:9/v1")
    with pytest.raises(ModelError, match="--verify needs the weights"):
        evaluate("m", plan, [exam], tmp_path, verify=3)


def _registered(folder: Path, monkeypatch: pytest.MonkeyPatch, **content: Any) -> None:
    (folder / "leaderboards").mkdir(exist_ok=True)
    text = yaml.safe_dump({"mine": {"backend": "server", **content}})
    (folder / "leaderboards" / "models.yaml").write_text(text)
    monkeypatch.setenv("CEVAL_SUITE_PATH", str(folder))


@contextmanager
def _arguments(*args: str) -> Iterator[None]:
    before, handler = sys.argv, signal.getsignal(signal.SIGTERM)
    sys.argv = ["ceval-suite", *args]
    try:
        yield
    finally:
        sys.argv = before
        signal.signal(signal.SIGTERM, handler)


def test_a_registered_server_runs_and_previews_from_the_command_line(
    engine: Engine,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = str(tmp_path / "runs")
    with serving(engine) as served:
        _registered(tmp_path, monkeypatch, path="tiny", url=served.url)
        with _arguments(
            *("run", "--model", "mine", "--tasks", "sample-ceval", "--limit", "1", "--out", out)
        ):
            cli.main()
    assert "mine" in capsys.readouterr().out
    with _arguments("preview", "sample-ceval", "--model", "mine"):
        cli.main()
    shown = capsys.readouterr().out
    assert "答案：" in shown
    assert "give `tokenizer: DIR`" in shown
    _registered(tmp_path, monkeypatch, path="x", url="http://h/v1", tokenizer=str(tiny_model))
    with _arguments("preview", "sample-ceval", "--model", "mine"):
        cli.main()
    assert "letters: one token each" in capsys.readouterr().out


# the wire, without a network -------------------------------------------------------------------


@given(
    st.lists(st.text("ABC 答案：，", min_size=1, max_size=3), min_size=2, max_size=12), st.data()
)
def test_the_beginning_of_a_continuation_is_found_from_the_end(
    texts: list[str], data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, len(texts) - 1))
    continuation = "".join(texts[k:])
    found = wire.starts(texts, continuation)
    # exactly there; later only where blanks alone lie between
    assert found == k or not "".join(texts[k:found]).strip()


def test_a_token_across_the_border_counts_as_the_beginning() -> None:
    assert wire.starts(["答案", "：A"], "A") == 1
    assert wire.starts(["Answer", ":", " ", "A"], " A") == 2
    assert wire.starts(["Answer", ":", "A"], " A") == 2
    with pytest.raises(wire.NotProved, match="do not spell"):
        wire.starts(["x", "y"], "A")


@given(st.lists(st.floats(-20, -0.01), min_size=2, max_size=30))
def test_a_bound_is_never_level_with_what_was_returned(values: list[float]) -> None:
    total = sum(map(math.exp, values))
    shift = max(0.0, math.log(total)) + 0.01
    found = [wire.Candidate(f"t{k}", k, v - shift) for k, v in enumerate(values)]
    seen = found[0].logprob
    bound, same = wire.bounded(found, [None, seen])
    assert same == seen
    assert bound < min(c.logprob for c in found)
    assert math.exp(bound) <= 1 - sum(math.exp(c.logprob) for c in found) + 1e-9


def test_tokens_that_read_alike_are_added_and_barred_ones_are_not_there() -> None:
    found = [wire.Candidate("A", 1, math.log(0.2)), wire.Candidate(" A", 2, math.log(0.3))]
    found.append(wire.Candidate("B", 3, -9999.0))
    loose = [wire.Wanted(letter, loose=True) for letter in [" A", "B"]]
    assert wire.look_up(found, loose) == [pytest.approx(math.log(0.5)), None]
    assert wire.look_up(found, [wire.Wanted("A")]) == [pytest.approx(math.log(0.2))]
    assert wire.look_up(found, [wire.Wanted("x", id=2)]) == [pytest.approx(math.log(0.3))]


# a real server ---------------------------------------------------------------------------------

LLAMA_SERVER = os.environ.get("CEVAL_SUITE_LLAMA_SERVER") or shutil.which("llama-server")
MARGIN = 0.35
"""Log-probabilities of 4-bit weights, computed by llama.cpp with 8-bit activations, may differ."""


@contextmanager
def llama_server(weights: Path, log: Path) -> Iterator[str]:
    port = free_port()
    command = [str(LLAMA_SERVER), "-m", str(weights), "--port", str(port), "-a", "smollm2"]
    command += ["-c", "8192", "--parallel", "2", "--threads", "2", "--device", "none"]
    with log.open("wb") as sink:
        process = subprocess.Popen(command, stdout=sink, stderr=sink)
        try:
            for _ in range(600):
                try:
                    if httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200:
                        break
                except httpx.TransportError:
                    pass
                assert process.poll() is None, log.read_text()[-2000:]
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()
            process.wait(30)


@pytest.mark.real
@pytest.mark.smollm2
@pytest.mark.skipif(
    not LLAMA_SERVER, reason="no llama-server (PATH, or CEVAL_SUITE_LLAMA_SERVER names it)"
)
def test_llama_cpp_and_hf_agree_on_a_hundred_real_items(
    smollm2: Path, real_data: Path, tmp_path: Path
) -> None:
    exam = prepare("mmlu", Selection(None, 0, None, None, 2, real_data, False))
    items = exam.scored()[:100]
    asked = [exam.renderer(item.subject).render(item).request() for item in items]
    with llama_server(smollm2, tmp_path / "log") as url:
        plan = ModelSpec(backend="server", path="smollm2", url=url, options={"top_logprobs": 20000})
        backend = open_backend(plan)
        theirs = {reply.id: reply for reply in backend.ask(asked)}
    ours = {r.id: r for r in open_backend(ModelSpec(path=str(smollm2))).ask(asked)}
    assert backend.describe()["items"]["next"] == len(asked)
    apart: dict[str, tuple[float, float]] = {}
    for name, one in ours.items():
        other = theirs[name].logprobs
        worst = max(abs(a - b) for a, b in zip(one.logprobs, other, strict=True))
        ranked = sorted(one.logprobs, reverse=True)
        mine, yours = (max(range(4), key=p.__getitem__) for p in (one.logprobs, other))
        if mine != yours:
            apart[name] = (worst, ranked[0] - ranked[1])
    print(f"{len(apart)} of {len(ours)} predictions differ: {apart}")
    for worst, lead in apart.values():
        assert lead <= 2 * worst <= 2 * MARGIN


def test_every_user_error_of_a_server_is_one_class() -> None:
    assert issubclass(transport.Refused, UserError)
