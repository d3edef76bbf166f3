"""Writing on the packed path: what transformers writes by itself, whatever stands beside a row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ceval_suite.backends import drafts as plan
from ceval_suite.backends import rounds
from ceval_suite.backends.batching import common
from ceval_suite.backends.drafts import Pen, Writing
from ceval_suite.backends.hf import HFBackend
from ceval_suite.errors import ModelError, PromptError
from ceval_suite.model_spec import ModelSpec
from ceval_suite.schema import Reply, Request

LETTERS = (" A", " B", " C", " D")
STORY = "以下是一个关于河流的问题。 The river is long and the bridge is old.\n" * 6


def open_float32(path: Path, **options: Any) -> HFBackend:
    return HFBackend(ModelSpec(path=str(path), dtype="float32", **options))


def contexts(count: int) -> list[str]:
    """Contexts of unlike lengths; some share a passage below what all of them share."""
    passages = [STORY + f"Passage {k}: " + "water and stone " * (3 * k + 1) for k in range(3)]
    return [
        passages[k % 3] + f"\nQuestion {k}: " + "why? " * (k % 5) + "\nAnswer:"
        for k in range(count)
    ]


def to_write(count: int, most: int = 9, stop: tuple[str, ...] = ()) -> list[Request]:
    return [
        Request(id=f"w{k}", context=text, max_new_tokens=most, stop=stop)
        for k, text in enumerate(contexts(count))
    ]


def by_transformers(backend: HFBackend, request: Request) -> list[int]:
    """Token by token from the model's own forward pass, with nothing kept in between."""
    ids = backend.encoder.ids([request.context], special=True)[0].tolist()
    backend.forward._use(backend.forward._plain)
    out: list[int] = []
    with torch.inference_mode():
        for _ in range(request.max_new_tokens):
            logits = backend.model(input_ids=torch.tensor([ids + out]), use_cache=False).logits
            out.append(int(logits[0, -1].argmax()))
            if out[-1] in backend.composer.pen.ends:
                break
    return out


def text_of(backend: HFBackend, ids: Sequence[int]) -> str:
    ends = backend.composer.pen.ends
    return backend.loaded.tokenizer.decode(
        [i for i in ids if i not in ends], skip_special_tokens=True
    )


def test_rows_written_together_are_what_each_is_alone(tiny_model: Path) -> None:
    backend = open_float32(tiny_model)
    requests = to_write(11)
    replies = {reply.id: reply for reply in backend.ask(requests)}
    assert backend.describe()["path"]["writing"] == "packed"
    for request in requests:
        alone = by_transformers(backend, request)
        assert replies[request.id].text == text_of(backend, alone)
        assert replies[request.id].written == len(alone)
    assert len({reply.text for reply in replies.values()}) > 1


def test_groups_of_any_size_write_the_same(tiny_model: Path) -> None:
    backend = open_float32(tiny_model)
    requests = to_write(10)
    expected = {r.id: r.text for r in backend.ask(requests)}
    for rows in (1, 2, 3, 7):
        backend.composer.decoder._rows = rows
        assert {r.id: r.text for r in backend.ask(requests)} == expected


def test_running_out_of_memory_costs_nothing_but_time(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    backend = HFBackend(ModelSpec(path=str(tiny_model), dtype="float32"), said.append)
    requests = to_write(8)
    expected = {r.id: r.text for r in backend.ask(requests)}
    step = backend.forward.step

    def small(layout: Any, tokens: Sequence[int]) -> torch.Tensor:
        if len(tokens) > 3:
            raise torch.OutOfMemoryError("no room")
        return step(layout, tokens)

    monkeypatch.setattr(backend.forward, "step", small)
    replies = list(backend.ask(requests))
    assert {r.id: r.text for r in replies} == expected
    assert len(replies) == len(requests)
    assert any("rows are written at once from now on" in line for line in said)


def test_one_row_that_does_not_fit_is_said_in_a_sentence(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = open_float32(tiny_model)
    list(backend.ask(to_write(2)))

    def never(*_: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(backend.forward, "step", never)
    with pytest.raises(ModelError, match=r"out of memory on writing one row of \d+ tokens; use"):
        list(backend.ask(to_write(2)))


def test_a_stop_text_ends_a_row_and_is_cut_off(tiny_model: Path) -> None:
    backend = open_float32(tiny_model)
    long = {r.id: r for r in backend.ask(to_write(6, most=24))}
    whole = [reply.text for reply in long.values() if reply.text]
    stop = whole[0][len(whole[0]) // 2 :][:2]
    assert stop
    for reply in backend.ask(to_write(6, most=24, stop=(stop, "never written"))):
        text = long[reply.id].text
        assert text is not None
        at = text.find(stop)
        assert reply.text == (text[:at] if at >= 0 else text)
        assert reply.finished == (at >= 0 or long[reply.id].finished)


def test_the_end_token_ends_a_row_and_is_no_text(tiny_model: Path) -> None:
    backend = open_float32(tiny_model)
    (first,) = backend.ask(to_write(1, most=6))
    ids = by_transformers(backend, to_write(1, most=6)[0])
    backend.composer.pen.ends = frozenset({ids[2]})
    (reply,) = backend.ask(to_write(1, most=6))
    cut = ids.index(ids[2])
    assert reply.text == backend.loaded.tokenizer.decode(ids[:cut], skip_special_tokens=True)
    assert reply.finished
    assert reply.written == cut + 1
    assert not first.finished
    assert first.written == 6


def test_letters_and_text_come_from_one_pass(tiny_model: Path) -> None:
    backend = open_float32(tiny_model)
    scored = [
        Request(id=f"w{k}", context=t, continuations=LETTERS) for k, t in enumerate(contexts(5))
    ]
    letters = {r.id: r for r in backend.ask(scored)}
    texts = {r.id: r for r in backend.ask(to_write(5))}
    before = backend.forward.computed
    both = {r.id: r for r in backend.ask([replace(w, continuations=LETTERS) for w in to_write(5)])}
    again = backend.forward.computed - before
    list(backend.ask(to_write(5)))
    assert again == backend.forward.computed - before - again
    for id, reply in both.items():
        assert reply.text == texts[id].text
        assert reply.logprobs == pytest.approx(letters[id].logprobs, abs=1e-5)
        assert reply.logits == pytest.approx(letters[id].logits, abs=1e-4)
        assert reply.choice_mass == pytest.approx(letters[id].choice_mass, rel=1e-4)


def test_equal_requests_are_written_once(tiny_model: Path) -> None:
    backend = open_float32(tiny_model)
    one = to_write(1)[0]
    replies = list(backend.ask([replace(one, id=f"copy{k}") for k in range(4)]))
    assert len({reply.text for reply in replies}) == 1
    assert len(replies) == 4
    assert [bool(reply.new_tokens) for reply in replies].count(True) == 1


def test_what_is_written_must_fit_behind_its_context(tiny_model: Path) -> None:
    backend = open_float32(tiny_model, max_length=100)
    with pytest.raises(PromptError, match=r"w0: \d+ tokens and 9 to write where .* reads 100"):
        list(backend.ask(to_write(1)))


def test_the_plain_path_writes_the_same(tiny_model: Path) -> None:
    plain = open_float32(tiny_model, engine="plain")
    packed = open_float32(tiny_model)
    requests = [*to_write(4), replace(to_write(5)[4], continuations=LETTERS)]
    expected = {r.id: r for r in packed.ask(requests)}
    for reply in plain.ask(requests):
        assert reply.text == expected[reply.id].text
        assert reply.logprobs == pytest.approx(expected[reply.id].logprobs, abs=1e-4)
    assert plain.describe()["path"]["writing"] == "one row at a time"


def test_penalties_of_a_checkpoint_change_nothing(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = open_float32(tiny_model, engine="plain")
    expected = [r.text for r in plain.ask(to_write(3))]
    plain.model.generation_config.repetition_penalty = 5.0
    plain.model.generation_config.suppress_tokens = list(range(200))
    assert [r.text for r in plain.ask(to_write(3))] == expected
    assert plain.model.generation_config.repetition_penalty == 5.0


def chain(name: str, context: str, links: int) -> list[Request]:
    first = Request(id=f"{name}#0", context=context + "\n（1）【答案】", continuations=LETTERS)
    rest = [
        Request(
            id=f"{name}#{k}",
            context=f" <eoa>\n（{k + 1}）【答案】",
            continuations=LETTERS,
            after=f"{name}#{k - 1}",
        )
        for k in range(1, links)
    ]
    return [first, *rest]


def chains() -> list[Request]:
    return [r for k, text in enumerate(contexts(7)) for r in chain(f"c{k}", text, 1 + k % 4)]


def asked_by_rounds(backend: HFBackend, requests: Sequence[Request]) -> dict[str, Reply]:
    return {reply.id: reply for reply in rounds.asked(backend._answer, requests)}


def test_chains_on_one_row_are_what_rounds_give(tiny_model: Path) -> None:
    backend = open_float32(tiny_model)
    expected = asked_by_rounds(backend, chains())
    before = backend.forward.computed
    replies = list(backend.ask(chains()))
    computed = backend.forward.computed - before
    assert sum(reply.new_tokens for reply in replies) == computed
    places = {reply.id: n for n, reply in enumerate(replies)}
    for request in chains():
        if request.after:
            assert places[request.after] < places[request.id]
    for reply in replies:
        assert reply.logprobs == pytest.approx(expected[reply.id].logprobs, abs=1e-5)
        assert reply.num_tokens == expected[reply.id].num_tokens
    assert len(replies) == len(expected)


def test_a_chain_computes_what_joins_on_and_nothing_else(tiny_model: Path) -> None:
    backend = open_float32(tiny_model)
    one = chain("c", contexts(1)[0], 6)
    list(backend.ask(one))
    before = backend.forward.computed
    (*_, last) = backend.ask(one)
    assert backend.forward.computed - before == last.num_tokens


def test_chains_whose_letters_take_several_tokens_go_round_by_round(tiny_model: Path) -> None:
    backend = open_float32(tiny_model)
    texts = (" the river", " the bridge", " old stone")
    some = [replace(request, continuations=texts) for request in chains()]
    expected = asked_by_rounds(backend, some)
    for reply in backend.ask(some):
        assert reply.logprobs == pytest.approx(expected[reply.id].logprobs, abs=1e-5)


def test_a_chain_that_changes_earlier_tokens_goes_on_round_by_round(
    tiny_model: Path, tiny_tokenizer: Any
) -> None:
    # "A" before "nswer" is another token than "A" alone, so that the link changes the letter's own
    backend = open_float32(tiny_model)
    first = Request(id="c#0", context=contexts(1)[0] + " ", continuations=("A", "B"))
    second = Request(id="c#1", context="nswer: ", continuations=("A", "B"), after="c#0")
    third = Request(id="c#2", context="; ", continuations=("A", "B"), after="c#1")
    expected = asked_by_rounds(backend, [first, second, third])
    found = {reply.id: reply for reply in backend.ask([first, second, third])}
    for id, reply in expected.items():
        assert found[id].logprobs == pytest.approx(reply.logprobs, abs=1e-5)


def test_the_plain_path_follows_chains_by_rounds(tiny_model: Path) -> None:
    packed, plain = open_float32(tiny_model), open_float32(tiny_model, engine="plain")
    some = chains()[:6]
    expected = {reply.id: reply for reply in packed.ask(some)}
    for reply in plain.ask(some):
        assert reply.logprobs == pytest.approx(expected[reply.id].logprobs, abs=1e-4)


class Tokens:
    """Stands for a tokenizer whose tokens are letters of the alphabet."""

    def decode(self, ids: Sequence[int], **_: Any) -> str:
        return "".join(chr(97 + i) for i in ids)


@given(
    written=st.lists(st.integers(0, 3), min_size=1, max_size=30),
    stop=st.lists(st.text("abcd", min_size=1, max_size=4), max_size=3),
)
def test_a_text_ends_where_its_first_stop_text_begins(written: list[int], stop: list[str]) -> None:
    draft = Writing(Pen(Tokens(), ()), np.zeros(1, np.int32), len(written), tuple(stop))
    steps = 0
    for token in written:
        steps += 1
        if draft.add(token):
            break
    whole = Tokens().decode(written)
    places = [at for at in map(whole.find, stop) if at >= 0]
    # it ends as soon as the first of them is complete
    ends = [whole.find(text) + len(text) for text in stop if text in whole]
    assert steps == (min(ends) if ends else len(written))
    if ends:
        known = whole[: min(ends)]
        assert draft.text == known[: min(at for at in map(known.find, stop) if at >= 0)]
    else:
        assert draft.text == whole
        assert not places
    assert draft.finished == bool(ends)


rows = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8), min_size=1, max_size=25)


@settings(max_examples=200)
@given(rows=rows, size=st.integers(1, 9), longest=st.integers(1, 5))
def test_groups_cover_all_rows_once_and_their_tries_lack_only_what_is_kept(
    rows: list[list[int]], size: int, longest: int
) -> None:
    drafts = [Writing(Pen(Tokens(), ()), np.array(row, np.int32), 1) for row in rows]
    ordered = plan.in_order(drafts)
    runs = plan.groups(ordered, size)
    assert [k for first, last in runs for k in range(first, last)] == list(range(len(rows)))
    assert all(last - first <= size for first, last in runs)
    kept = ordered[0].tokens[:0]
    for first, last in runs:
        some = ordered[first:last]
        stem = plan.stem(some)
        assert all(len(d.tokens) > stem for d in some)
        have = common(kept, some[0].tokens[:stem])
        nodes = plan.planned(some, have, longest)
        for k, draft in enumerate(some):
            # climbing from the node with the row's read gives its tokens back
            at = next(n for n, node in enumerate(nodes) if (k, 0) in [r.slot for r in node.reads])
            tokens: list[int] = []
            while at >= 0:
                tokens = nodes[at].tokens.tolist() + tokens
                assert nodes[at].parent < at
                start, at = nodes[at].start, nodes[at].parent
            assert start == have
            assert tokens == draft.tokens[have:].tolist()
        kept = some[0].tokens[:stem]


def test_real_texts_equal_transformers_own(smollm2: Path) -> None:
    backend = HFBackend(ModelSpec(path=str(smollm2), dtype="float32"))
    requests = [
        Request(id="a", context="The capital of France is", max_new_tokens=12, stop=("\n",)),
        Request(
            id="b", context="The capital of France is Paris. The capital of", max_new_tokens=12
        ),
        Request(id="c", context="1, 2, 3, 4,", max_new_tokens=12),
    ]
    for reply in backend.ask(requests):
        request = next(r for r in requests if r.id == reply.id)
        text = text_of(backend, by_transformers(backend, request))
        for stop in request.stop:
            text = text.split(stop)[0]
        assert reply.text == text


@pytest.fixture
def windowed(tmp_path: Path, tiny_tokenizer: Any) -> Callable[..., Path]:
    """Tiny models whose attention is more than a plain softmax over all that came before."""

    def make(kind: str) -> Path:
        from transformers import AutoModelForCausalLM
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING

        torch.manual_seed(3)
        more = {
            "mistral": {"sliding_window": 24},
            "gemma2": {"sliding_window": 24, "attn_logit_softcapping": 3.0, "head_dim": 16},
            "gpt_oss": {
                "sliding_window": 24,
                "head_dim": 16,
                "num_local_experts": 4,
                "num_experts_per_tok": 2,
                "layer_types": ["sliding_attention", "full_attention"],
            },
        }[kind]
        config = CONFIG_MAPPING[kind](
            vocab_size=len(tiny_tokenizer), hidden_size=64, intermediate_size=96,
            num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            initializer_range=0.1, max_position_embeddings=4096,
            bos_token_id=tiny_tokenizer.bos_token_id, eos_token_id=tiny_tokenizer.eos_token_id,
            pad_token_id=tiny_tokenizer.pad_token_id, **more,
        )  # fmt: skip
        folder = tmp_path / kind
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        tiny_tokenizer.save_pretrained(folder)
        return folder

    return make


@pytest.mark.parametrize("kind", ["mistral", "gemma2", "gpt_oss"])
def test_windows_caps_and_sinks_hold_while_writing(
    windowed: Callable[..., Path], kind: str
) -> None:
    backend = open_float32(windowed(kind))
    requests = to_write(5, most=7)
    replies = {reply.id: reply for reply in backend.ask(requests)}
    assert backend.describe()["path"]["writing"] == "packed"
    for request in requests:
        assert replies[request.id].text == text_of(backend, by_transformers(backend, request))
