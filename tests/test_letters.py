"""The letter table says what scoring uses, for every shipped wording and any tokenizer."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from ceval_suite.backends import tokenizers
from ceval_suite.backends.lexicon import Lexicon, open_tokenizer
from ceval_suite.backends.tokens import Encoder
from ceval_suite.catalog import load_prompts, load_task
from ceval_suite.errors import ConfigError, ModelError, PromptError
from ceval_suite.model_spec import ModelSpec
from ceval_suite.prepare import Selection, prepare
from ceval_suite.records import read_json
from ceval_suite.report import audit as report
from ceval_suite.run import evaluate
from ceval_suite.tokenizer import letters, material
from ceval_suite.tokenizer.letters import REFUSED, SEVERAL, SHIFT, SOUND, Letters
from tests.vocabularies import INDEX, llama, merged, opened

SAMPLES = ("sample-mmlu", "sample-cmmlu", "sample-ceval", "sample-agieval", "sample-gaokao")
EVERY = [*INDEX, "llama", "chinese-llama"]


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> dict[str, material.Source]:
    """The bundled exams, wherever real data may lie."""
    return material.sources(tmp_path_factory.mktemp("no-data"))


@pytest.fixture(scope="module")
def table_of(
    samples: dict[str, material.Source], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Lexicon, list[Letters]]]:
    """A real tokenizer and its letter table."""

    def look(name: str) -> tuple[Lexicon, list[Letters]]:
        if name == "chinese-llama":
            found = open_tokenizer(str(merged(tmp_path_factory.mktemp(name))))
        else:
            found = opened(name)
        return found, letters.table(found, material.wordings(), samples)

    return look


def made(core: Any, tmp_path: Path, **options: Any) -> Lexicon:
    """A tokenizer built here, opened as a directory."""
    from transformers import PreTrainedTokenizerFast

    PreTrainedTokenizerFast(tokenizer_object=core, **options).save_pretrained(tmp_path)
    return open_tokenizer(str(tmp_path))


def bytes_only(merges: list[tuple[str, str]]) -> Any:
    """A byte-level tokenizer with a handful of merges and nothing that splits text before them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = [*alphabet, *("".join(pair) for pair in merges)]
    core = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, merges))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    return core


def row(found: list[Letters], template: str, language: str = "en") -> Letters:
    return next(one for one in found if one.template == template and one.language == language)


# the same as scoring


def test_every_shipped_wording_has_a_verdict(
    tiny_model: Path, samples: dict[str, material.Source]
) -> None:
    wanted = material.wordings()
    found = letters.table(open_tokenizer(str(tiny_model)), wanted, samples)
    assert {one.template for one in found} == {f"{file}/{name}" for file, name in wanted}
    assert len(wanted) == 15
    assert not [name for _, name in wanted if name.endswith(("-generate", "-script", "-cot"))]
    assert {one.verdict for one in found} <= set(letters.VERDICTS)
    # a wording that words its two languages or no shots differently has a row for each
    agieval = [(one.language, one.shots) for one in found if one.template == "agieval/official"]
    assert agieval == [("en", 5), ("zh", 5), ("en", 0), ("zh", 0)]


@pytest.mark.usefixtures("one_thread")
def test_the_table_is_what_run_json_says_was_scored(
    tiny_model: Path, samples: dict[str, material.Source], tmp_path: Path
) -> None:
    spec = ModelSpec(path=str(tiny_model), device="cpu")
    tasks = [
        prepare(name, Selection(protocol=protocol, limit=1))
        for name in SAMPLES
        for protocol, template in load_prompts(load_task(name).prompt).items()
        if template.subjects is None
        and (load_task(name).prompt, protocol) in material.wordings()
        and not template.read_as
    ]
    folders = evaluate("tiny", spec, tasks, tmp_path)
    found = letters.table(open_tokenizer(str(tiny_model)), material.wordings(), samples)
    assert len(tasks) == 11
    for task, folder in zip(tasks, folders, strict=True):
        (scored,) = read_json(folder / "run.json")["letters"]
        name = f"{task.task.prompt}/{task.protocol}"
        (one,) = [
            one
            for one in found
            if (one.template, one.shots, one.about.get("id")) == (name, task.shots, scored["id"])
        ]
        assert one.task == task.task.name
        if not task.template.read_as:
            assert one.about == scored
            continue
        # ColossalEval scores letters as in two other contexts; the table has their own
        cues = [f"{text}{letter}" for letter in "ABCD" for text in ("Answer: ", "答案：")]
        assert [*scored["continuations"]] == cues
        assert all(len(found["ids"]) == 1 for found in scored["continuations"].values())


@pytest.mark.parametrize("name", EVERY)
def test_verdicts_of_real_tokenizers_equal_a_plain_count_of_tokens(
    name: str, table_of: Callable[[str], tuple[Lexicon, list[Letters]]]
) -> None:
    lexicon, found = table_of(name)
    seen = 0
    for one in found:
        protocol = one.template.split("/")[1]
        if load_prompts(load_task(one.task).prompt)[protocol].subjects is not None:
            continue
        ready = prepare(one.task, Selection(protocol=protocol, shots=one.shots))
        item = next(i for i in ready.scored() if i.id == one.about["id"])
        prompt = ready.renderer(item.subject).render(item)
        context, scored = prompt.text + prompt.lead, prompt.continuations
        (before, *full) = lexicon.encode([context, *(context + c for c in scored)], special=True)
        border = min(
            next((k for k, (a, b) in enumerate(zip(before, ids, strict=False)) if a != b), n)
            for ids in full
            for n in (min(len(before), len(ids)),)
        )
        tails = [ids[border:] for ids in full]
        assert [token["ids"] for token in one.tokens.values()] == tails
        expected = SOUND if border == len(before) else SHIFT
        assert one.verdict == (expected if {*map(len, tails)} == {1} else SEVERAL)
        (encoded,) = Encoder(lexicon.tokenizer).encode([replace(prompt, read_as=()).request()])
        assert [list(tail) for tail in encoded.tails] == tails
        seen += 1
    assert seen == 17


@pytest.mark.parametrize("name", EVERY)
def test_letters_of_real_tokenizers_are_the_same_in_the_shots(
    name: str, table_of: Callable[[str], tuple[Lexicon, list[Letters]]]
) -> None:
    lexicon, found = table_of(name)
    for template, task, language, cue in (
        ("mmlu/official", "sample-mmlu", "en", "Answer: "),
        ("mmlu/colossal", "sample-mmlu", "en", "Answer: "),
        ("cmmlu/official", "sample-cmmlu", "zh", "答案是："),
        ("ceval/lm-eval", "sample-ceval", "zh", "答案： "),
    ):
        one = row(found, template, language)
        ready = prepare(task, Selection(protocol=template.split("/")[1]))
        item = ready.scored()[0]
        text = ready.renderer(item.subject).render(item).text
        shown = [(m[1], m.end(1)) for m in re.finditer(rf"{cue}([A-D])\n\n", text)]
        assert len(shown) == 5
        # the last token of the text up to a shot's letter is the letter, with its blank or without
        ends = lexicon.encode([text[:end] for _, end in shown], special=True)
        same = all(
            ids[-1] == one.tokens[letter]["ids"][-1]
            for (letter, _), ids in zip(shown, ends, strict=True)
        )
        assert same
        assert one.in_shots is True


def test_a_shift_of_the_border_is_seen_where_the_cue_ends_in_a_blank(
    table_of: Callable[[str], tuple[Lexicon, list[Letters]]],
) -> None:
    # byte-level tokenizers have a token for a colon and a letter: leaving the blank out is no cure
    for name, alone in (("llama-3", ":A"), ("qwen", ":A"), ("mistral", "A")):
        _, found = table_of(name)
        one = row(found, "mmlu/colossal")
        assert (one.verdict, one.form, one.cue) == (SHIFT, " A", "Answer: ")
        assert one.tokens["A"]["tokens"] in (["ĠA"], ["▁A"])
        assert one.other == [alone]
        plain = row(found, "ceval/official", "zh")
        assert (plain.verdict, plain.form) == (SOUND, "A")
        assert plain.other == one.tokens["A"]["tokens"]


# what a tokenizer can do to letters


def test_a_blank_and_a_letter_that_never_merge_are_scored_as_two_tokens(
    samples: dict[str, material.Source], tmp_path: Path
) -> None:
    found = letters.table(made(bytes_only([]), tmp_path), material.wordings(), samples)
    one = row(found, "mmlu/official")
    assert (one.verdict, one.form, one.of, one.prompts) == (SEVERAL, " A", 5, 5)
    assert one.tokens["A"]["tokens"] == ["Ġ", "A"]
    assert row(found, "cmmlu/official", "zh").verdict == SOUND
    assert row(found, "mmlu/colossal").verdict == SOUND  # the blank is the cue's own


def test_letters_that_grow_together_with_the_cue_shift_the_border(
    samples: dict[str, material.Source], tmp_path: Path
) -> None:
    found = letters.table(
        made(bytes_only([("Ġ", "A"), ("Ġ", "B"), ("Ġ", "C"), ("Ġ", "D")]), tmp_path),
        material.wordings(["mmlu/colossal", "mmlu/official"]),
        samples,
    )
    assert [(one.template, one.verdict) for one in found] == [
        ("mmlu/official", SOUND),
        ("mmlu/colossal", SHIFT),
    ]
    assert {one.form for one in found} == {" A"}


def test_letters_that_the_shots_show_in_another_token_are_named(
    samples: dict[str, material.Source], tmp_path: Path
) -> None:
    core = bytes_only([(letter, "Ċ") for letter in "ABCD"])
    (one,) = letters.table(made(core, tmp_path), material.wordings(["cmmlu/official"]), samples)
    assert (one.verdict, one.in_shots) == (SOUND, False)
    assert one.shot_tokens
    assert one.shot_tokens == {label: [f"{label}Ċ"] for label in one.shot_tokens}


def test_letters_that_look_the_same_are_refused_with_the_reason(
    samples: dict[str, material.Source], tmp_path: Path
) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    core = Tokenizer(models.WordLevel({"<unk>": 0, "Answer": 1, ":": 2}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    lexicon = made(core, tmp_path, unk_token="<unk>")
    (one,) = letters.table(lexicon, material.wordings(["mmlu/official"]), samples)
    assert one.verdict == REFUSED
    assert "cannot be told apart" in one.reason
    assert one.tokens == {}
    ready = prepare("sample-mmlu", Selection(limit=1))
    item = ready.scored()[0]
    request = replace(ready.renderer(item.subject).render(item), read_as=()).request()
    with pytest.raises(PromptError, match="cannot be told apart"):
        Encoder(lexicon.tokenizer).encode([request])


def test_an_encoder_decoder_has_its_letters_by_themselves(
    samples: dict[str, material.Source], tmp_path: Path
) -> None:
    core = bytes_only([("Ġ", "A")])
    (tmp_path / "config.json").write_text('{"model_type": "t5", "is_encoder_decoder": true}')
    lexicon = made(core, tmp_path)
    (one,) = letters.table(lexicon, material.wordings(["mmlu/colossal"]), samples)
    assert (one.verdict, one.tokens["A"]["tokens"]) == (SOUND, ["A"])


def test_letters_behind_a_chat_template_are_those_that_chat_scores(
    tiny_tokenizer: Any, samples: dict[str, material.Source], tmp_path: Path
) -> None:
    template = (
        "{% for m in messages %}<s>user\n{{ m.content }}</s>{% endfor %}"
        "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
    )
    core = tiny_tokenizer.backend_tokenizer
    lexicon = made(core, tmp_path, bos_token="<s>", eos_token="</s>", chat_template=template)
    (one,) = letters.table(lexicon, material.wordings(["cmmlu/official"]), samples, chat=True)
    assert one.cue == "答案是："
    assert one.about["context_tail"].endswith("istant\n答案是：")
    assert one.in_shots is True
    bare = made(core, tmp_path / "bare")
    with pytest.raises(ModelError, match="chat template"):
        letters.table(bare, material.wordings(["cmmlu/official"]), samples, chat=True)


def test_tokens_that_are_named_in_bytes_are_shown_as_text() -> None:
    class Named:  # as the code that comes with Qwen's first checkpoints names its tokens
        def convert_ids_to_tokens(self, ids: list[int]) -> list[bytes]:
            return [bytes([i]) for i in ids]

    assert tokenizers.tokens(Named(), [65, 0xE4]) == ["A", "\ufffd"]


# what it is looked at with


def test_wordings_are_chosen_by_name() -> None:
    assert material.wordings(["official"]) == [
        (file, "official") for file in ("agieval", "ceval", "cmmlu", "gaokao", "mmlu")
    ]
    assert material.wordings(["mmlu/lm-eval"]) == [("mmlu", "lm-eval")]
    with pytest.raises(ConfigError, match="did you mean 'colossal'"):
        material.wordings(["colosal"])


def test_a_wording_that_no_task_asks_with_is_said_to_be_unseen(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "own.yaml").write_text(
        'mine: {source: me, question: "{{ item.question }}", answer: " {{ label }}"}\n'
    )
    monkeypatch.setenv("CEVAL_SUITE_PATH", str(tmp_path))
    wanted = material.wordings(["own/mine"])
    (one,) = letters.table(open_tokenizer(str(tiny_model)), wanted, material.sources(tmp_path))
    assert (one.template, one.verdict) == ("own/mine", letters.UNSEEN)
    (shown,) = report.letters({"letters": [asdict(one)]}).rows
    assert shown[-1].text == letters.UNSEEN


@pytest.mark.real
def test_real_benchmarks_are_used_where_they_are_found(real_data: Path) -> None:
    found = material.sources(real_data)
    assert {file: source.task.name for file, source in found.items()} == {
        file: file for file in ("agieval", "ceval", "cmmlu", "gaokao", "mmlu")
    }
    lexicon = opened("mistral")
    rows = letters.table(lexicon, material.wordings(["colossal"]), found)
    assert {(one.template, one.language): one.prompts for one in rows} == {
        ("agieval/colossal", "en"): 5,
        ("agieval/colossal", "zh"): 6,
        ("ceval/colossal", "zh"): 52,
        ("cmmlu/colossal", "zh"): 67,
        ("gaokao/colossal", "zh"): 7,
        ("mmlu/colossal", "en"): 57,
    }
    assert all(one.of == one.prompts for one in rows)


@pytest.mark.real
def test_the_files_of_the_extension_are_llamas_and_more(tmp_path: Path) -> None:
    base, more = open_tokenizer(str(llama())), open_tokenizer(str(merged(tmp_path)))
    assert (base.size, more.size) == (32_000, 49_953)
    assert more.entries[:32_000] == base.entries
