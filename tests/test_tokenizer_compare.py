"""Tokenizers side by side: every figure is the one that the libraries give by hand."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ceval_suite import catalog, cli
from ceval_suite.backends import open_backend, tokenizers
from ceval_suite.backends.lexicon import Lexicon, open_tokenizer
from ceval_suite.backends.tokens import Encoder
from ceval_suite.errors import ConfigError
from ceval_suite.fitting import render
from ceval_suite.model_spec import ModelSpec
from ceval_suite.prepare import Selection, prepare
from ceval_suite.report import table, tokenizer_plot
from ceval_suite.report import tokenizers as report
from ceval_suite.tokenizer import compare as comparing
from ceval_suite.tokenizer.compare import Comparison, labels, open_all
from ceval_suite.tokenizer.corpus import Corpus, open_corpus, questions
from ceval_suite.tokenizer.encoding import Meter, parallel
from ceval_suite.tokenizer.prompts import Bench

ZH = ["今天天气很好。", "他们在讨论经济问题，2023年。", "这是第三句话"]
EN = ["The weather is fine today.", "They discuss the economy  of 2023.", "A third sentence"]
ODD = [" leading", "trailing ", "two  blanks", "\ttab", "▁under", "a▁b", "▁ x", "ﬁ ligature"]
ODD += ["<s>start", "end</s>", "<unk>", "<s> </s>", "x<0x0A>y", "\u3000全角", "é e\u0301", "🙂"]
ODD += ["\u200b", "a\x00b"]


def nothing(_name: str, _done: int, _total: int | None) -> None:
    pass


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory, sample_texts: list[str]) -> Path:
    """A SentencePiece BPE of 2,500 pieces with bytes for the rest, as LLaMA's is made."""
    from sentencepiece import SentencePieceTrainer

    made = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter("\n".join(sample_texts).split("\n")),
        model_writer=made,
        model_type="bpe",
        vocab_size=2500,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    path = tmp_path_factory.mktemp("pieces") / "tokenizer.model"
    path.write_bytes(made.getvalue())
    return path


@pytest.fixture(scope="module")
def levels(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Path:
    """The byte-level tokenizer as a tokenizer.json."""
    path = tmp_path_factory.mktemp("levels") / "tokenizer.json"
    tiny_tokenizer.backend_tokenizer.save(str(path))
    return path


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    path = tmp_path_factory.mktemp("corpus") / "pairs.tsv"
    rows = [f"{e}\t{z}\n" for z, e in zip(ZH, EN, strict=True)]
    path.write_text("".join(rows), encoding="utf-8")
    return open_corpus([str(path)])


@pytest.fixture(scope="module")
def found(pieces: Path, levels: Path, pairs: Corpus) -> Comparison:
    """Two tokenizers on three pairs and one bundled exam, in contexts that drop shots."""
    opened = open_all([f"sp={pieces}", f"bytes={levels}"])
    bench = Bench(prepare("sample-cmmlu", Selection()))
    return comparing.compare(opened, pairs, [bench], [400, 60], nothing)


# lengths


def test_tokens_are_those_of_the_libraries_themselves(
    found: Comparison, pieces: Path, levels: Path
) -> None:
    from sentencepiece import SentencePieceProcessor
    from tokenizers import Tokenizer

    processor, core = (
        SentencePieceProcessor(model_file=str(pieces)),
        Tokenizer.from_file(str(levels)),
    )
    sp, level = found.contenders
    for language, texts in (("zh", ZH), ("en", EN)):
        assert sp.measured[language].tokens == sum(len(processor.encode(t)) for t in texts)
        assert level.measured[language].tokens == sum(
            len(core.encode(t, add_special_tokens=False).ids) for t in texts
        )
    row = printed(report.wide(found, {}))[0]
    tokens = {"zh": sp.measured["zh"].tokens, "en": sp.measured["en"].tokens}
    characters, whole = {"zh": len("".join(ZH)), "en": len("".join(EN))}, sum(tokens.values())
    assert row["vocabulary"] == 2500
    assert row["tokens/text zh"] == pytest.approx(tokens["zh"] / 3)
    assert row["tokens/char"] == pytest.approx(whole / sum(characters.values()))
    assert row["tokens/text"] == pytest.approx(whole / 6)
    assert row["tokens/char en"] == pytest.approx(tokens["en"] / characters["en"])
    assert row["tokens/word en"] == pytest.approx(tokens["en"] / len(" ".join(EN).split()))
    assert row["tokens/byte zh"] == pytest.approx(tokens["zh"] / len("".join(ZH).encode()))
    assert row["tokens × first zh"] == 1


def test_times_and_speeds_are_positive_and_name_their_threads(found: Comparison) -> None:
    for contender in found.contenders:
        assert contender.direct
        for one in contender.measured.values():
            assert one.seconds > 0
            assert one.single > 0
            assert one.multi > 0
    heads = report.wide(found, {}).columns
    assert "MB/s zh, 1 thread" in heads
    assert (f"MB/s zh, {found.threads} threads" in heads) == (found.threads > 1)


def test_a_corpus_larger_than_a_batch_is_counted_whole(
    pieces: Path, pairs: Corpus, found: Comparison, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparing, "BATCH", 2)
    seen: list[tuple[str, int, int | None]] = []
    again = comparing.compare(open_all([str(pieces)]), pairs, [], [], lambda *a: seen.append(a))
    for language in ("zh", "en"):
        before, now = (one.contenders[0].measured[language] for one in (found, again))
        assert now.tokens == before.tokens
    done = [step for step in seen if step[0] == "encoding"]
    size = len("".join(ZH + EN).encode())
    assert done[-1] == ("encoding", size, size)


# the fast way to ids


@pytest.mark.parametrize("legacy", [True, False])
def test_the_processors_batches_give_the_tokenizers_own_ids(
    pieces: Path, legacy: bool, sample_texts: list[str]
) -> None:
    spec = ModelSpec(path=str(pieces))
    made = type(tokenizers.of_sentencepiece(pieces))(vocab_file=str(pieces), legacy=legacy)
    lexicon = Lexicon("made", pieces, made, spec)
    texts = ODD + [line for text in sample_texts for line in text.split("\n") if line.strip()]
    meter = Meter(lexicon)
    assert meter.direct
    expected = lexicon.encode(texts)
    for threads in (1, 4):
        assert meter.ids(texts, threads) == expected
        assert meter.count(texts, threads) == sum(map(len, expected))


def test_batches_below_a_fast_tokenizer_give_its_own_ids(
    levels: Path, sample_texts: list[str]
) -> None:
    lexicon = open_tokenizer(str(levels))
    texts = ODD + [line for text in sample_texts for line in text.split("\n")]
    meter = Meter(lexicon)
    expected = lexicon.encode(texts)
    for threads in (1, 4):
        assert meter.ids(texts, threads) == expected
        assert meter.count(texts, threads) == sum(map(len, expected))
    meter.forget()
    assert meter.ids(texts[:50]) == expected[:50]


def test_what_a_file_says_of_cutting_and_filling_texts_is_not_done(
    levels: Path, tmp_path: Path
) -> None:
    from tokenizers import Tokenizer

    core = Tokenizer.from_file(str(levels))
    expected = [len(core.encode(text, add_special_tokens=False).ids) for text in ZH + EN]
    core.enable_truncation(4)
    core.enable_padding(length=100)
    core.save(str(tmp_path / "cut.json"))
    meter = Meter(open_tokenizer(str(tmp_path / "cut.json")))
    assert [len(ids) for ids in meter.ids(ZH + EN)] == expected
    assert meter.count(ZH + EN) == sum(expected)


@pytest.mark.real
def test_llamas_processor_gives_the_tokenizers_own_ids_on_real_questions(
    real_data: Path,
) -> None:
    model = real_data.parent / "tokenizers" / "llama" / "tokenizer.model"
    if not model.is_file():
        pytest.skip("the LLaMA SentencePiece model is not beside the data")
    lexicon = open_tokenizer(str(model))
    tasks = [prepare(name, Selection(limit=12, data=real_data)) for name in ("ceval", "mmlu")]
    texts = [text for _, text in questions(tasks).read()]
    assert len(texts) > 1000
    assert Meter(lexicon).ids(texts, 2) == lexicon.encode(texts)


def test_a_tokenizer_that_does_more_than_its_library_is_asked_itself(
    pieces: Path, pairs: Corpus
) -> None:
    class Lower(type(tokenizers.of_sentencepiece(pieces))):
        def tokenize(self, text: str, **options: Any) -> list[str]:
            return super().tokenize(text.lower(), **options)

    lexicon = Lexicon("lower", pieces, Lower(vocab_file=str(pieces)), ModelSpec(path=str(pieces)))
    contender = comparing.Contender("lower", str(pieces), lexicon)
    result = comparing.compare([contender], pairs, [], [], nothing)
    assert not contender.direct
    assert contender.measured["en"].tokens == sum(map(len, lexicon.encode(EN)))
    assert any("Python tokenizer" in note for note in report.wide(result, {}).notes)


def test_the_switch_of_the_librarys_threads_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "TOKENIZERS_PARALLELISM"
    monkeypatch.setenv(name, "false")
    with parallel(True):
        assert os.environ[name] == "true"
    assert os.environ[name] == "false"
    monkeypatch.delenv(name)
    with parallel(False):
        assert os.environ[name] == "false"
    assert name not in os.environ


# prompts


def test_prompt_lengths_and_distinct_tokens_are_those_counted_by_hand(
    found: Comparison, levels: Path
) -> None:
    from tokenizers import Tokenizer

    core = Tokenizer.from_file(str(levels))
    prepared = prepare("sample-cmmlu", Selection())
    renderers = {s: prepared.renderer(s) for s in prepared.subjects}
    rows = [
        core.encode(renderers[i.subject].render(i).text, add_special_tokens=False).ids
        for i in prepared.scored()
    ]
    cost = found.contenders[1].costs["sample-cmmlu"]
    lengths = sorted(map(len, rows))
    middle = len(lengths) // 2
    assert (cost.items, cost.shots, cost.total) == (len(rows), 5, sum(lengths))
    assert cost.mean == pytest.approx(sum(lengths) / len(lengths))
    assert cost.median == (lengths[middle] + lengths[~middle]) / 2
    assert cost.longest == lengths[-1]
    # every distinct beginning of a row is one token to compute
    assert cost.distinct == len({tuple(r[: k + 1]) for r in rows for k in range(len(r))})


@pytest.mark.parametrize("name", ["sample-gaokao", "sample-agieval"])
def test_prompts_of_every_kind_cost_what_a_run_asks(name: str, tiny_tokenizer: Any) -> None:
    prepared = prepare(name, Selection(limit=3))
    encoder = Encoder(tiny_tokenizer)
    cost = Bench(prepared).cost(encoder, [64, 10**6], lambda _: None)
    assert cost is not None
    wanted: list[int] = []
    for item in prepared.scored():
        # sub-questions stand after the right answers to those before them
        prompt = prepared.renderer(item.subject).render(item, before=item.before or None)
        assert item.question.strip() in prompt.text
        assert prompt.text.count("【答案】") >= item.part * (item.parts < 5)
        wanted.append(len(tiny_tokenizer(prompt.text + prompt.lead).input_ids))
    assert cost.items == len(wanted) == len(prepared.scored())
    assert cost.mean == pytest.approx(sum(wanted) / len(wanted))
    assert cost.longest == max(wanted)
    assert cost.distinct < sum(wanted) <= cost.total
    small, large = cost.fits
    assert small.dropped + small.unfit == len(wanted)
    assert (large.dropped, large.unfit) == (0, 0)


@pytest.mark.parametrize("task", ["sample-cmmlu", "sample-mmlu"])  # longest first, last first
def test_shots_are_dropped_as_a_run_drops_them(
    tiny_model: Path, task: str, one_thread: None
) -> None:
    prepared = prepare(task, Selection(limit=8))
    for limit in (350, 500):
        spec = ModelSpec(path=str(tiny_model), max_length=limit)
        prompts = render(prepared, prepared.scored(), open_backend(spec))
        lexicon = open_tokenizer(str(tiny_model))
        cost = Bench(prepared).cost(Encoder(lexicon.tokenizer), [limit], lambda _: None)
        assert cost is not None
        (fit,) = cost.fits
        assert fit.unfit == 0
        assert fit.dropped == sum(prompt.shots < prepared.shots for prompt in prompts)
        assert (fit.dropped > 0) or limit == 500


def test_items_that_never_fit_are_counted_apart(found: Comparison) -> None:
    wide, narrow = found.contenders[0].costs["sample-cmmlu"].fits
    assert (wide.length, narrow.length) == (400, 60)
    assert wide.unfit == 0
    assert narrow.unfit > 0
    assert narrow.dropped + narrow.unfit == found.contenders[0].costs["sample-cmmlu"].items


def test_costs_are_multiples_of_the_first_tokenizers(found: Comparison) -> None:
    first, second = (s.costs["sample-cmmlu"] for s in found.contenders)
    rows = printed(report.wide(found, {}))
    assert rows[0]["sample-cmmlu distinct × first"] == 1
    assert rows[1]["sample-cmmlu tokens × first"] == pytest.approx(second.total / first.total)
    assert rows[1]["sample-cmmlu distinct × first"] == pytest.approx(
        second.distinct / first.distinct
    )


def test_a_tokenizer_that_cannot_score_letters_has_no_cost_but_a_reason(
    tmp_path: Path, levels: Path, pairs: Corpus
) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    core = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.save(str(tmp_path / "blind.json"))
    opened = open_all([str(levels), str(tmp_path / "blind.json")])
    bench = Bench(prepare("sample-ceval", Selection(limit=2)))
    result = comparing.compare(opened, pairs, [bench], [2048], nothing)
    view, view_items = report.views(result, {})[-1], len(bench.prompts)
    assert view.title == f"Prompts of sample-ceval val, official, 5-shot, {view_items} items"
    assert view.rows[1][3].value is None
    assert any("blind.json: " in note and "told apart" in note for note in view.notes)


@pytest.mark.real
def test_llamas_chinese_extension_halves_real_questions(real_data: Path, tmp_path: Path) -> None:
    from sentencepiece import SentencePieceProcessor
    from sentencepiece import sentencepiece_model_pb2 as protocol

    folder = real_data.parent / "tokenizers"
    llama, more = folder / "llama" / "tokenizer.model", folder / "chinese-llama"
    if not llama.is_file():
        pytest.skip("the LLaMA SentencePiece models are not beside the data")
    base = protocol.ModelProto.FromString(llama.read_bytes())
    extra = protocol.ModelProto.FromString((more / "chinese_sp.model").read_bytes())
    known = {piece.piece for piece in base.pieces}
    for piece in extra.pieces:
        if piece.piece not in known:
            base.pieces.add(piece=piece.piece, score=0)
    (tmp_path / "zh.model").write_bytes(base.SerializeToString())
    tasks = [prepare(name, Selection(data=real_data, limit=20)) for name in ("ceval", "cmmlu")]
    corpus = questions(tasks)
    opened = open_all([f"zh={tmp_path / 'zh.model'}", f"llama={llama}"])
    result = comparing.compare(opened, corpus, [], [], nothing)
    one, two = printed(report.wide(result, {}))
    texts = [text for _, text in corpus.read()]
    for row, path in ((one, tmp_path / "zh.model"), (two, llama)):
        processor = SentencePieceProcessor(model_file=str(path))
        tokens = sum(map(len, processor.encode(texts)))
        assert row["tokens/char"] == pytest.approx(tokens / sum(map(len, texts)))
    assert one["vocabulary"] == 49953
    assert 1.8 < two["tokens × first zh"] < 2.1
    assert 0.6 < one["tokens/char"] < 0.75


# names


def test_labels_are_as_much_of_a_reference_as_tells_it_apart() -> None:
    found = labels(["a/llama/tokenizer.model", "b/llama/tokenizer.model", "x=c/y.json", "own/name"])
    assert [label for label, _ in found] == [
        "a/llama/tokenizer.model",
        "b/llama/tokenizer.model",
        "x",
        "name",
    ]
    assert [reference for _, reference in found][2] == "c/y.json"


def test_a_path_that_is_there_is_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a=b").mkdir()
    assert labels(["a=b", "c=d", "."]) == [("a=b", "a=b"), ("c", "d"), (".", ".")]
    assert labels(["/home/me@host/tok"]) == [("tok", "/home/me@host/tok")]


def test_a_version_is_no_name_and_a_pattern_stays() -> None:
    pypi = "pypi:llama-models==0.3.0/llama_models/llama4/tokenizer.model@o200k"
    assert labels([pypi]) == [("llama4/tokenizer.model@o200k", pypi)]
    assert labels([f"mine={pypi}"]) == [("mine", pypi)]
    two = labels(["pypi:a==1/t.json", "pypi:b==2/t.json"])
    assert [label for label, _ in two] == ["pypi:a==1/t.json", "pypi:b==2/t.json"]


@pytest.mark.parametrize(
    "given", [["a/x.json", "a/x.json"], ["n=a", "n=b"], ["x.json=a", "x.json"]]
)
def test_two_tokenizers_of_one_name_are_refused(given: list[str]) -> None:
    with pytest.raises(ConfigError, match="stands for two tokenizers"):
        labels(given)


# what others reported


def test_the_reported_tables_are_as_printed() -> None:
    published = catalog.published_tokenizers()
    blog, colossal = published["news-commentary"], published["colossal-llama"]
    assert len(blog.tokenizers) == 6
    assert len(colossal.tokenizers) == 14
    moss = blog.tokenizers["MOSS"]
    assert (moss.vocabulary, moss.length("zh"), moss.length("en")) == (106072, 24.8, 28.3)
    assert (moss.seconds("zh"), moss.seconds("en")) == (428, 49)
    # in this table, mean tokens / compression is the mean number of characters, the same throughout
    for row in colossal.tokenizers.values():
        assert row.length("all") / row.compression == pytest.approx(111.8, abs=0.2)


def test_a_wrong_key_in_the_reported_tables_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "leaderboards" / "published"
    folder.mkdir(parents=True)
    text = "t: {title: t, source: s, corpus: c, tokenizers: {A: {vocabulary: 1, speed: 2}}}\n"
    (folder / "tokenizers.yaml").write_text(text)
    monkeypatch.setenv("CEVAL_SUITE_PATH", str(tmp_path))
    with pytest.raises(
        ConfigError, match=r"tokenizers\.yaml: t: tokenizers\.A\.speed: unknown key"
    ):
        catalog.published_tokenizers()
    assert any("tokenizers.A.speed" in problem for problem in catalog.check())


def test_reported_rows_stand_below_measured_ones_and_are_marked(found: Comparison) -> None:
    published = catalog.published_tokenizers()
    made = report.wide(found, published)
    sources = [str(row[1].value) for row in made.rows]
    assert sources == ["measured"] * 2 + [
        *["reported: blog series on training LLMs, 2023"] * 6,
        *["reported: Colossal-LLaMA README"] * 14,
    ]
    for cells in made.rows:
        assert all(cell.reported != (cells[1].value == "measured") for cell in cells)
    lengths, compression, speed, prompts = report.views(found, published)
    assert [len(view.rows) for view in (lengths, compression, speed, prompts)] == [8, 16, 2, 2]
    text = table.markdown(lengths)
    assert (
        "| *MOSS* | *reported: blog series on training LLMs, 2023* | *106,072* | *24.8* |" in text
    )
    assert "| sp | measured | 2,500 |" in text
    assert any("not of these texts" in note for note in lengths.notes)
    assert any("p50k" in note for note in lengths.notes)


# forms


def printed(made: Any) -> list[dict[str, Any]]:
    """Rows of a table as its JSON gives them back, by column."""
    rows = json.loads(table.to_json(made))["rows"]
    return [{k: v["value"] if isinstance(v, dict) else v for k, v in row.items()} for row in rows]


def test_csv_and_json_hold_the_same_numbers(found: Comparison) -> None:
    published = catalog.published_tokenizers()
    made = report.wide(found, published)
    assert len(set(made.columns)) == len(made.columns)
    from_json = printed(made)
    from_csv = list(csv.DictReader(io.StringIO(table.to_csv(made))))
    assert len(from_json) == len(from_csv) == 22
    for one, two in zip(from_json, from_csv, strict=True):
        assert one["tokenizer"] == two["tokenizer"]
        for column in made.columns[2:]:
            text = two[column]
            assert (float(text) if text else None) == one[column]


@pytest.fixture
def call(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., tuple[int, str, str]]]:
    """`ceval-suite tokenizer compare ARGS` in this process."""
    import signal

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setenv("CEVAL_SUITE_DEBUG", "")

    def run(*args: object) -> tuple[int, str, str]:
        line = ["ceval-suite", "tokenizer", "compare", *map(str, args)]
        monkeypatch.setattr("sys.argv", line)
        capsys.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
        return code, *capsys.readouterr()

    yield run
    signal.signal(signal.SIGTERM, before)


Call = Callable[..., tuple[int, str, str]]


def test_the_command_prints_csv_that_no_spreadsheet_runs(
    call: Call, levels: Path, pieces: Path, tmp_path: Path
) -> None:
    zh, en = tmp_path / "a.zh", tmp_path / "a.en"
    zh.write_text("\n".join(ZH), encoding="utf-8")
    en.write_text("\n".join(EN), encoding="utf-8")
    code, out, _ = call(
        f"+cmd|calc={levels}", pieces, "--parallel", zh, en, "--format", "csv", "--no-published"
    )
    assert code == 0
    rows = list(csv.DictReader(io.StringIO(out)))
    names = ["'+cmd|calc", f"{pieces.parent.name}/{pieces.name}"]
    assert [row["tokenizer"] for row in rows] == names
    assert float(rows[0]["tokens/text zh"]) > 0


def test_the_command_without_texts_takes_the_bundled_exams(call: Call, levels: Path) -> None:
    code, out, _ = call(levels, "--limit", "2", "--json")
    assert code == 0
    content = json.loads(out)
    assert "sample-mmlu test, sample-cmmlu test, sample-ceval val" in content["title"]
    assert "sample-ceval distinct tokens" in content["columns"]
    code, out, _ = call(levels, "--task", "sample-ceval", "--limit", "2", "--format", "markdown")
    assert code == 0
    assert "## Prompts of sample-ceval" in out
    assert "*Colossal-LLaMA-2*" in out


def test_the_plot_shows_measured_and_reported_bars(found: Comparison, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "plot.svg"
    tokenizer_plot.check_plot(path)
    tokenizer_plot.plot(found, catalog.published_tokenizers(), path)
    first = path.read_text(encoding="utf-8")
    for text in ("sp", "bytes", "LLaMA-2-7B (Colossal-LLaMA)", "reported, other texts"):
        assert f"<!-- {text} -->" in first
    tokenizer_plot.plot(found, {}, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--format", "xml"], "unknown format 'xml'"),
        (["--contexts", "2048,many"], "--contexts 2048,many: give lengths"),
        (["--plot", "plot.doc"], "must end in .svg"),
        (["--plot", "nowhere/plot.svg"], "there is no folder nowhere"),
        (["--task", "sample-cevl"], "did you mean 'sample-ceval'"),
        (["--corpus", "nothing.txt"], "there is no such file"),
        (["--corpus", "a", "--parallel", "b", "c"], "not both"),
    ],
)
def test_wrong_options_are_one_sentence_before_any_work(
    call: Call, levels: Path, options: list[str], message: str
) -> None:
    code, out, err = call(levels, *options)
    assert code == 1
    assert out == ""
    assert message in err
    assert err.count("error:") == 1
