"""A crew answers whatever happens to its workers: here threads that run the code of actors."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ceval_suite.backends.base import Backend, Say
from ceval_suite.backends.crew import Crew, CrewBackend
from ceval_suite.backends.ray import placed
from ceval_suite.backends.scheduling import DEATHS
from ceval_suite.errors import ModelError, PromptError, UserError
from ceval_suite.model_spec import ModelSpec
from ceval_suite.schema import Request
from tests.hands import Death, ThreadHands, Told

SPEC = ModelSpec(path="somewhere/else")


def requests(count: int = 60, units: int = 12) -> list[Request]:
    return [
        Request(id=f"t/{k}", context="x" * (k + 1), continuations=("A",), unit=f"u{k % units}")
        for k in range(count)
    ]


@contextmanager
def crew(
    before: Callable[[Request], None] = lambda _: None,
    *,
    workers: int = 3,
    patience: float = 60,
    coming: int = 1,
    identify: Callable[[ModelSpec], dict[str, Any]] = lambda _: {},
    opener: Callable[[ModelSpec, Say], Backend] | None = None,
    room: int | None = None,
    stillborn: Callable[[int], bool] = lambda _: False,
) -> Iterator[tuple[Crew, ThreadHands]]:
    hands = ThreadHands(opener or (lambda *_: Told(before)), identify, room, stillborn)
    with Crew(hands, workers, lambda _: {}, patience=patience, coming=coming) as found:
        yield found, hands


def once(kill: Callable[[], None], ids: set[str]) -> Callable[[Request], None]:
    """Does something the first time each of these is asked."""
    lock = threading.Lock()

    def before(request: Request) -> None:
        with lock:
            struck = request.id in ids
            ids.discard(request.id)
        if struck:
            kill()

    return before


def die() -> None:
    raise Death("struck by lightning")


def answered(backend: CrewBackend, count: int = 60) -> None:
    replies = list(backend.ask(requests(count)))
    assert sorted(r.id for r in replies) == sorted(r.id for r in requests(count))
    assert all(reply.num_tokens == int(reply.id[2:]) + 1 for reply in replies)


def test_all_requests_are_answered_and_small_questions_too() -> None:
    lines: list[str] = []
    with crew() as (found, hands):
        backend = found.open(SPEC, lines.append)
        assert isinstance(backend, Backend)
        assert backend.max_length == 1000
        assert backend.count_tokens(["ab", "abc"]) == [2, 3]
        assert backend.wrap("hello") == "<hello>"
        assert backend.audit(requests(2)) == [{"id": "t/0"}, {"id": "t/1"}]
        answered(backend)
        about = backend.describe()
    assert about["tokens"] == {"total": 60, "computed": 60}
    assert about["workers"]["size"] == hands.started == 3
    assert about["workers"]["lost"] == 0
    assert lines == []


def test_a_dead_worker_is_replaced_and_its_unit_asked_again_without_a_reply_twice() -> None:
    lines: list[str] = []
    with crew(once(die, {"t/7", "t/20", "t/41"})) as (found, hands):
        backend = found.open(SPEC, lines.append)
        answered(backend)
        assert backend.describe()["workers"]["lost"] == 3
    assert hands.started == 6
    assert lines == ["a worker was lost (struck by lightning); another does its work"] * 3


def test_a_hanging_worker_is_killed_and_replaced() -> None:
    never = threading.Event()
    lines: list[str] = []
    with crew(once(lambda: never.wait() and None, {"t/7"}), patience=2) as (found, hands):
        answered(found.open(SPEC, lines.append))
    assert len(hands.killed) == 1
    assert lines == ["a worker was lost (it said nothing for 2 s); another does its work"]


def counting(*trouble: Callable[[], None]) -> Callable[[ModelSpec, Say], Backend]:
    """Opens backends of which the first ones do this when they are asked to count."""
    left = list(trouble)

    class Counting(Told):
        def count_tokens(self, texts: Sequence[str], **options: Any) -> list[int]:
            if left:
                left.pop(0)()
            return super().count_tokens(texts, **options)

    return lambda *_: Counting()


def test_a_worker_that_hangs_in_a_small_question_is_killed_and_another_asked() -> None:
    never = threading.Event()
    lines: list[str] = []
    opener = counting(lambda: never.wait() and None)
    with crew(opener=opener, workers=1, patience=0.5) as (found, hands):
        backend = found.open(SPEC, lines.append)
        assert backend.count_tokens(["abc"]) == [3]
        answered(backend)
        assert backend.describe()["workers"]["lost"] == 1
    assert hands.killed == [1]
    assert lines == ["a worker was lost (it said nothing for 0.5 s); another does its work"]


def test_a_worker_that_dies_of_a_small_question_is_replaced_and_three_end_the_run() -> None:
    lines: list[str] = []
    with crew(opener=counting(die, die), workers=1) as (found, hands):
        backend = found.open(SPEC, lines.append)
        assert backend.count_tokens(["abc"]) == [3]
        answered(backend)
    assert hands.started == 3
    assert lines == ["a worker was lost (struck by lightning); another does its work"] * 2
    with crew(opener=counting(die, die, die)) as (found, _):
        backend = found.open(SPEC, lines.append)
        with pytest.raises(ModelError, match="workers that are asked about it die"):
            backend.count_tokens(["abc"])


def test_an_interrupt_reaches_whoever_waits_for_a_small_question() -> None:
    never, hangs = threading.Event(), threading.Event()
    raised: list[BaseException] = []

    def hang() -> None:
        hangs.set()
        never.wait()

    def one(found: Crew) -> None:
        backend = found.open(SPEC, lambda _: None)
        try:
            backend.count_tokens(["a"])
        except KeyboardInterrupt as error:
            raised.append(error)

    with crew(opener=counting(hang)) as (found, _):
        thread = threading.Thread(target=one, args=(found,), daemon=True)
        thread.start()
        hangs.wait(10)
        found.stop(KeyboardInterrupt())
        thread.join(10)
    assert len(raised) == 1


def test_a_unit_that_kills_three_workers_ends_the_run_with_its_first_item() -> None:
    def before(request: Request) -> None:
        if request.id == "t/19":
            die()

    with crew(before) as (found, hands):
        backend = found.open(SPEC, lambda _: None)
        with pytest.raises(
            ModelError,
            match=r"t/7: 3 workers in a row died on the 5 items from this one on \(struck by",
        ):
            answered(backend)
    assert hands.started >= 5


def test_a_model_that_kills_three_workers_ends_the_run_with_its_name() -> None:
    def opener(*_: Any) -> Backend:
        raise Death("no such kernel")

    with (
        crew(opener=opener) as (found, _),
        pytest.raises(
            ModelError, match=r"somewhere/else: 3 workers in a row died opening it \(no su"
        ),
    ):
        found.open(SPEC, lambda _: None)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_model_that_kills_its_workers_leaves_them_to_the_others(workers: int) -> None:
    opened: list[str] = []

    def opener(spec: ModelSpec, _: Say) -> Backend:
        opened.append(spec.path)
        if spec.path == "broken":
            raise Death("out of memory")
        return Told()

    with crew(workers=workers, coming=2, opener=opener) as (found, _):
        with pytest.raises(ModelError, match="broken: 3 workers in a row died opening it"):
            found.open(ModelSpec(path="broken"), lambda _: None)
        ended: list[bool] = []

        def good() -> None:
            answered(found.open(ModelSpec(path="good"), lambda _: None))
            ended.append(True)

        thread = threading.Thread(target=good, daemon=True)
        thread.start()
        thread.join(20)
    assert ended == [True]
    assert opened.count("broken") <= DEATHS + workers - 1


def test_workers_that_die_before_they_are_ready_stop_no_healthy_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ceval_suite.backends.crew.PAUSE", 0.01)
    lines: list[str] = []
    with crew(lambda _: time.sleep(0.01), stillborn=lambda number: number > 1) as (found, hands):
        answered(found.open(SPEC, lines.append))
    assert hands.started > 2 + DEATHS
    (line,) = lines
    assert line.startswith("workers die before they can be told anything (no such library); others")


def test_between_workers_that_die_before_they_are_ready_is_a_pause() -> None:
    with crew(lambda _: time.sleep(0.01), stillborn=lambda number: number > 1) as (found, hands):
        answered(found.open(SPEC, lambda _: None))
        assert hands.started == 3


@pytest.mark.parametrize("workers", [1, 3])
def test_where_no_worker_becomes_ready_the_run_ends_with_the_reason(workers: int) -> None:
    with (
        crew(workers=workers, stillborn=lambda _: True) as (found, hands),
        pytest.raises(
            ModelError, match=r"workers die before they can be told anything \(no such library\)\."
        ),
    ):
        found.open(SPEC, lambda _: None)
    assert hands.started == 3


def test_while_there_are_workers_nobody_looks_for_room() -> None:
    with crew(lambda _: time.sleep(0.01)) as (found, hands):
        backend = found.open(SPEC, lambda _: None)
        before = hands.looked
        answered(backend)
        assert hands.looked == before


@pytest.mark.parametrize("where", ["opening", "asking", "counting"])
def test_a_users_error_in_a_worker_arrives_as_the_same(where: str) -> None:
    def trouble(*_: Any, **__: Any) -> Any:
        raise PromptError("t/3: too long; use another model.")

    class Short(Told):
        count_tokens = trouble

    opener: dict[str, Callable[..., Backend]] = {
        "opening": trouble,
        "asking": lambda *_: Told(trouble),
        "counting": lambda *_: Short(),
    }

    def use(found: Crew) -> None:
        backend = found.open(SPEC, lambda _: None)
        backend.count_tokens(["a"])
        answered(backend)

    with crew(opener=opener[where]) as (found, hands):
        with pytest.raises(PromptError, match="t/3: too long; use another model"):
            use(found)
        assert hands.started == 3


def test_no_room_for_any_worker_is_said_and_room_for_one_is_enough() -> None:
    with crew(room=0) as (found, _), pytest.raises(ModelError, match="there is no room"):
        found.open(SPEC, lambda _: None)
    with crew(room=1) as (found, _):
        answered(found.open(SPEC, lambda _: None))


def test_a_node_with_other_files_under_the_models_name_is_refused() -> None:
    with (
        crew(identify=lambda _: {"weights_sha256": "other"}) as (found, _),
        pytest.raises(ModelError, match="has another model of this name than this machine; put"),
    ):
        found.open(SPEC, lambda _: None)


def test_a_node_without_the_model_is_named_with_the_remedy(tmp_path: Path) -> None:
    spec = ModelSpec(path=str(tmp_path / "away"))
    with (
        crew() as (found, _),
        pytest.raises(ModelError, match=r"away is not on .*, where a worker runs; put the model"),
    ):
        found.open(spec, lambda _: None)


def test_what_a_backend_says_in_a_worker_is_said_here() -> None:
    def opener(_: ModelSpec, say: Say) -> Backend:
        say("plain path: for a reason")
        return Told(lambda request: say(f"at {request.id}") if request.id == "t/5" else None)

    lines: list[str] = []
    with crew(opener=opener, workers=1) as (found, _):
        answered(found.open(SPEC, lines.append))
    assert lines == ["plain path: for a reason", "at t/5"]


def test_several_models_are_answered_at_once_and_one_that_fails_stops_no_other() -> None:
    def opener(spec: ModelSpec, _: Say) -> Backend:
        if spec.path == "broken":
            raise ModelError("broken: no weights.")
        return Told()

    ended: dict[str, str] = {}

    def one(found: Crew, name: str) -> None:
        try:
            backend = found.open(ModelSpec(path=name), lambda _: None)
            answered(backend)
            backend.close()
            ended[name] = "answered"
        except UserError as error:
            ended[name] = str(error)

    names = ["a", "b", "broken", "c", "d"]
    with crew(once(die, {"t/7"}), coming=len(names), opener=opener) as (found, _):
        threads = [threading.Thread(target=one, args=(found, name)) for name in names]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert ended == {n: "broken: no weights." if n == "broken" else "answered" for n in names}


def test_an_interrupt_reaches_whoever_waits() -> None:
    never = threading.Event()
    raised: list[BaseException] = []

    def one(found: Crew) -> None:
        try:
            answered(found.open(SPEC, lambda _: None))
        except KeyboardInterrupt as error:
            raised.append(error)

    with crew(lambda _: never.wait() and None) as (found, _):
        thread = threading.Thread(target=one, args=(found,))
        thread.start()
        found.stop(KeyboardInterrupt())
        thread.join(10)
    assert len(raised) == 1


@pytest.mark.parametrize(("gpus", "most"), [(0.25, 0.2), (0, 0.8), (1, 0.8), (2, 0.8)])
def test_vllm_takes_of_a_shared_gpu_its_share(gpus: float, most: float) -> None:
    spec = ModelSpec(path="x", backend="vllm", options={"gpu_memory_utilization": 0.8})
    assert placed(spec, gpus).backend_options().gpu_memory_utilization == pytest.approx(most)
    assert placed(ModelSpec(path="x"), gpus).options == {}
