"""Options turned on: every option at every letter once, and nothing else changed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ceval_suite.backends import open_backend
from ceval_suite.circular import back, can_turn, turned
from ceval_suite.errors import ConfigError
from ceval_suite.model_spec import ModelSpec
from ceval_suite.prepare import Prepared, Selection, prepare
from ceval_suite.records import read_json, read_records
from ceval_suite.run import evaluate
from ceval_suite.schema import Reply, Request


class Fixed:
    """A backend that likes one letter whatever is asked, or the option that holds a text."""

    max_length = 10**9

    def __init__(self, letter: str = "", texts: Mapping[str, str] | None = None) -> None:
        self.letter = letter
        self.texts = texts or {}
        self.asked: list[Request] = []

    def count_tokens(self, texts: Sequence[str], *, template_tokens: bool = False) -> list[int]:
        return [len(text) for text in texts]

    def wrap(self, user: str) -> str:
        return user

    def audit(self, requests: Sequence[Request]) -> list[dict[str, Any]]:
        return []

    def ask(self, requests: Sequence[Request]) -> Iterator[Reply]:
        for request in requests:
            self.asked.append(request)
            letters = [c.strip() for c in request.continuations]
            question = request.context.rpartition("\n\n")[2]
            lines = question.splitlines()
            known = self.texts.get(request.id.partition("?")[0])
            liked = self.letter or next(x[0] for x in lines if x[2:].strip() == known)
            scores = tuple(5.0 if letter == liked else 0.0 for letter in letters)
            yield Reply(id=request.id, logits=scores, logprobs=tuple(s - 6 for s in scores))

    def describe(self) -> dict[str, Any]:
        return {"dtype": "float32", "path": {}}


def run(prepared: Prepared, backend: Any, checkpoint: Path, out: Path) -> Path:
    spec = ModelSpec(path=str(checkpoint))
    (folder,) = evaluate("fixed", spec, [prepared], out, opener=lambda _spec, _say: backend)
    return folder


def gold(prepared: Prepared) -> dict[str, str]:
    """Item id → the text of its right option."""
    return {
        item.id: item.choices[item.labels.index(item.answer[0])]
        for some in prepared.items.values()
        for item in some
    }


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(bytes(range(200)))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "config.json").write_text("{}")
    return folder


@pytest.mark.parametrize("name", ["sample-mmlu", "sample-ceval", "sample-cmmlu", "sample-agieval"])
def test_in_as_many_turns_as_options_each_option_stands_at_every_letter_once(name: str) -> None:
    prepared = prepare(name, Selection())
    items = [item for some in prepared.items.values() for item in some if can_turn(item)]
    assert items
    for item in items:
        count = len(item.labels)
        turns = [turned(item, turn) for turn in range(count)]
        assert turns[0] == item
        for place in range(count):
            assert Counter(t.choices[place] for t in turns) == Counter(item.choices)
        for turn, other in enumerate(turns):
            (gold,), (right,) = item.answer, other.answer
            # the right letter of every turn names the same text
            assert other.choices[other.labels.index(right)] == item.choices[item.labels.index(gold)]
            assert back(item.labels, right, turn) == gold
            assert other.labels == item.labels
            if item.options != item.choices:
                assert [o[:3] for o in other.options] == [o[:3] for o in item.options]
            assert (other.question, other.passage, other.id) == (
                item.question,
                item.passage,
                item.id,
            )


def test_each_turn_is_put_in_the_official_wording_as_if_it_were_published_so() -> None:
    for name in ("sample-mmlu", "sample-ceval", "sample-cmmlu", "sample-agieval"):
        prepared = prepare(name, Selection(circular=True))
        plain = prepare(name, Selection())
        for subject in prepared.subjects:
            for item in prepared.items[subject]:
                prompt = prepared.renderer(subject).render(item)
                assert prompt.text == plain.renderer(subject).render(item).text
                if not can_turn(item):
                    assert prompt.turns == ()
                    continue
                assert len(prompt.turns) == len(item.labels) - 1
                for turn, text in enumerate(prompt.turns, start=1):
                    as_published = plain.renderer(subject).render(turned(item, turn))
                    assert text == as_published.text + as_published.lead


def test_a_model_of_one_letter_is_never_consistent_and_one_that_knows_always_is(
    checkpoint: Path, tmp_path: Path
) -> None:
    prepared = prepare("sample-mmlu", Selection(circular=True))
    letters = run(prepared, Fixed("B"), checkpoint, tmp_path / "letter")
    found = read_json(letters / "summary.json")["circular"]
    assert found["consistent"]["acc/micro"]["value"] == 0
    assert found["steady"]["acc/micro"]["value"] == 0
    assert found["mean"]["acc/micro"]["value"] == pytest.approx(0.25)
    assert found["turns"] == [4]
    assert found["chance"] == pytest.approx(1 / 256)
    knowing = run(prepared, Fixed(texts=gold(prepared)), checkpoint, tmp_path / "knows")
    found = read_json(knowing / "summary.json")["circular"]
    for name in ("printed", "mean", "consistent", "averaged", "steady"):
        assert found[name]["acc/micro"]["value"] == 1, name
        assert found[name]["acc/macro"]["value"] == 1, name


def test_averaging_over_turns_undoes_a_liking_for_a_letter(
    checkpoint: Path, tmp_path: Path
) -> None:
    class Biased(Fixed):
        """Knows every answer a little, and likes B far more."""

        def ask(self, requests: Sequence[Request]) -> Iterator[Reply]:
            for reply in super().ask(requests):
                scores = tuple(
                    x / 5 + (3.0 if place == 1 else 0.0) for place, x in enumerate(reply.logits)
                )
                total = math.log(sum(map(math.exp, scores)))
                yield replace(reply, logits=scores, logprobs=tuple(s - total for s in scores))

    prepared = prepare("sample-mmlu", Selection(circular=True))
    folder = run(prepared, Biased(texts=gold(prepared)), checkpoint, tmp_path)
    found = read_json(folder / "summary.json")
    assert {r.prediction[0] for r in read_records(folder / "records.jsonl")} == {"B"}
    assert found["circular"]["averaged"]["acc/micro"]["value"] == 1
    assert found["circular"]["consistent"]["acc/micro"]["value"] == 0


def test_a_real_model_answers_each_turn_as_it_would_by_itself(
    tiny_model: Path, tmp_path: Path
) -> None:
    spec = ModelSpec(path=str(tiny_model))
    chosen = Selection(circular=True, limit=2)
    tasks = [prepare(name, chosen) for name in ("sample-ceval", "sample-agieval")]
    plain = [prepare(name, Selection(limit=2)) for name in ("sample-ceval", "sample-agieval")]
    folders = evaluate("tiny", spec, tasks, tmp_path)
    single = evaluate("tiny", spec, plain, tmp_path)
    backend = open_backend(spec)
    turns = 0
    for prepared, folder, other in zip(tasks, folders, single, strict=True):
        assert folder != other
        found = {r.id: r for r in read_records(folder / "records.jsonl")}
        alone = {r.id: r for r in read_records(other / "records.jsonl")}
        for item in prepared.scored():
            for key in item.record_ids():
                assert found[key].prediction == alone[key].prediction
            if not can_turn(item):
                continue
            for turn, said in enumerate(found[item.id].turns, start=1):
                asked = turned(item, turn)
                prompt = prepared.renderer(item.subject).render(asked)
                (reply,) = backend.ask([prompt.request()])
                for place, label in enumerate(item.labels):
                    published = back(item.labels, label, turn)
                    assert said["logprobs"][published] == pytest.approx(
                        reply.logprobs[place], abs=1e-4
                    )
                turns += 1
    assert turns > 20


def test_it_is_a_protocol_of_its_own_and_others_keep_their_fingerprints() -> None:
    plain, circular = (prepare("sample-mmlu", Selection(circular=c)) for c in (False, True))
    assert plain.fingerprint != circular.fingerprint
    assert circular.about()["circular"] is True


def test_questions_that_hold_their_options_cannot_be_turned() -> None:
    with pytest.raises(ConfigError, match="--circular turns the options"):
        prepare("sample-gaokao", Selection(circular=True))
    with pytest.raises(ConfigError, match="'official-generate' has none"):
        prepare("sample-ceval", Selection(circular=True, protocol="official-generate"))


@pytest.mark.real
def test_all_real_options_can_be_turned_and_come_back(real_data: Path) -> None:
    counts: Counter[str] = Counter()
    for name in ("mmlu", "ceval", "agieval"):
        prepared = prepare(name, Selection(data=real_data))
        for some in prepared.items.values():
            for item in filter(can_turn, some):
                round_trip = turned(turned(item, 1), len(item.labels) - 1)
                assert round_trip.choices == item.choices, item.id
                assert round_trip.answer == item.answer, item.id
                counts[name] += 1
    assert counts["mmlu"] == 14042
    assert counts["ceval"] == 1346
    assert counts["agieval"] > 4500
