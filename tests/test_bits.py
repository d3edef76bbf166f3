"""Bits per byte are those of a plain forward pass over rolling windows, and of lm-eval's."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ceval_suite.backends import forward, open_backend, rolling
from ceval_suite.bits import Corpus, measure
from ceval_suite.cli import app
from ceval_suite.errors import ConfigError, DataError, ModelError, RunError
from ceval_suite.model_spec import ModelSpec
from ceval_suite.prepare import Selection
from ceval_suite.records import find_bits, find_runs, read_json, read_lines
from ceval_suite.report import bits as report
from ceval_suite.schema import Text, TextRecord
from ceval_suite.texts import of_files, of_tasks

pytestmark = pytest.mark.usefixtures("one_thread")

SHORT = ["What is the capital of France?", "下列哪一项不是行政法的基本原则？", "x"]


def text(content: str, name: str = "t", **more: str) -> Text:
    values = {"group": "g", "language": "", "cluster": name, **more}
    return Text(id=name, text=content, **values)


def texts(contents: Sequence[str]) -> list[Text]:
    return [text(content, f"t{k}") for k, content in enumerate(contents)]


@cache
def parts(path: Path, gguf: str) -> tuple[Any, Any]:
    """Tokenizer and model as transformers alone reads them."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source: dict[str, Any] = {"gguf_file": gguf} if gguf else {}
    model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, **source)
    return AutoTokenizer.from_pretrained(path, **source), model.eval()


def plain(path: Path, content: str, window: int, stride: int, gguf: str = "") -> tuple[float, int]:
    """Natural log-probability and tokens of a text, by transformers alone, one token at a time.

    Which context each token has is said here as a rule, not as windows: as much as fits into a
    window that ends where the scored stretch of the token ends.
    """
    import torch

    tokenizer, model = parts(path, gguf)
    ids = tokenizer(content, add_special_tokens=False)["input_ids"]
    whole = [tokenizer.bos_token_id, *ids]
    total = 0.0
    with torch.inference_mode():
        done = 0
        while done < len(ids):
            end = min(len(ids), window if not done else done + stride)
            given = whole[max(0, end - window) : end]
            found = model(torch.tensor([given])).logits[0].double().log_softmax(-1)
            new = end - done
            wanted = torch.tensor(ids[done:end])
            total += float(found[len(given) - new :].gather(1, wanted[:, None]).sum())
            done = end
    return total, len(ids)


@pytest.fixture(scope="module")
def long_text(sample_texts: list[str]) -> str:
    return "".join(sample_texts)[:4000]


@pytest.mark.parametrize(("window", "stride"), [(64, 64), (64, 16), (100, 1000), (7, 1)])
@pytest.mark.parametrize("number", [0, 1, 6, 7, 64, 65, 129, 1000])
def test_every_token_is_scored_once_by_a_window_of_allowed_size(
    window: int, stride: int, number: int
) -> None:
    stride = min(stride, window)
    found = list(rolling.windows(number, window, stride))
    scored = [t for _, first, end in found for t in range(first, end)]
    assert scored == list(range(number))
    for begin, first, end in found:
        # a row is the tokens from `begin` (-1: the start token) to the one before the last scored
        assert 0 < end - 1 - begin <= window
        assert begin < first
        if first:
            assert end - 1 - begin == window  # as much context as there is room for
            assert end - first <= stride


@pytest.mark.parametrize("seed", [0, 7])
def test_windows_are_those_of_lm_eval(seed: int) -> None:
    utils = pytest.importorskip("lm_eval.utils")
    import random

    draw = random.Random(seed)
    for _ in range(200):
        number, window = draw.randrange(1, 300), draw.randrange(2, 80)
        context = draw.randrange(1, window)
        tokens = list(range(1000, 1000 + number))
        theirs = list(utils.get_rolling_token_windows(tokens, -1, window, context))
        whole = [-1, *tokens]
        ours = [
            (whole[begin + 1 : end], tokens[first:end])
            for begin, first, end in rolling.windows(number, window, window - context + 1)
        ]
        assert [scored for _, scored in ours] == [list(scored) for _, scored in theirs]
        # theirs may have a window of whole size hold what is scored as well as what is given
        for (given, scored), (context_given, _) in zip(ours, theirs, strict=True):
            assert given == list(context_given)[-window:]
            assert len(given) >= len(scored)


@pytest.mark.parametrize(("window", "stride"), [(None, None), (96, 96), (96, 24), (50, 50)])
def test_bits_equal_a_plain_computation(
    tiny_model: Path, long_text: str, window: int | None, stride: int | None
) -> None:
    backend: Any = open_backend(ModelSpec(path=str(tiny_model)))
    some = texts([*SHORT, long_text[:900]])
    found = {record.id: record for record in backend.measure(some, window, stride)}
    assert backend.path["attention"] == "packed"
    for one in some:
        logprob, tokens = plain(tiny_model, one.text, window or 16384, stride or window or 16384)
        record = found[one.id]
        assert (record.tokens, record.size) == (tokens, len(one.text.encode()))
        assert record.characters == len(one.text)
        assert abs(record.logprob - logprob) / math.log(2) / record.size < 1e-5


@pytest.mark.parametrize("engine", ["plain", "auto"])
def test_a_head_inside_the_model_says_the_same_and_never_holds_all_logits(
    tiny_model: Path, long_text: str, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    some = texts([long_text[:900]])
    (packed,) = open_backend(ModelSpec(path=str(tiny_model))).measure(some)  # type: ignore[attr-defined]
    monkeypatch.setattr(forward, "LOGITS", 2000 * 100)
    backend: Any = open_backend(ModelSpec(path=str(tiny_model), engine=engine))
    if engine == "auto":  # as where the head cannot be taken out of the model
        monkeypatch.setattr(forward, "post_processing", lambda *_: None)
    seen: list[int] = []
    original = forward.Forward._logits

    def counted(self: Any, ids: Any, at: Sequence[int], **inputs: Any) -> Any:
        seen.append(len(at))
        return original(self, ids, at, **inputs)

    monkeypatch.setattr(forward.Forward, "_logits", counted)
    (alone,) = backend.measure(some)
    assert max(seen) <= 100
    assert sum(seen) >= alone.tokens > 100
    assert backend.path["attention"] == ("packed" if engine == "auto" else "plain")
    assert abs(alone.logprob - packed.logprob) < 1e-2
    assert abs(alone.logprob - packed.logprob) / packed.size < 1e-5


def test_many_texts_go_through_in_small_portions(
    tiny_model: Path, long_text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = texts([long_text[at : at + 60] for at in range(0, 3000, 60)] + ["", SHORT[0], SHORT[0]])
    backend: Any = open_backend(ModelSpec(path=str(tiny_model)))
    whole = {r.id: r for r in backend.measure(some)}
    assert set(whole) == {one.id for one in some}
    assert whole["t50"].logprob == 0
    assert whole["t51"].logprob == whole["t52"].logprob
    monkeypatch.setattr(rolling, "READS", 50)
    parts = {r.id: r for r in backend.measure(some, 32, 8)}
    assert set(parts) == set(whole)
    assert all(parts[name].tokens == whole[name].tokens for name in whole)


def lm_eval_model(path: Path, **more: Any) -> Any:
    pytest.importorskip("lm_eval")
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(path), device="cpu", dtype="float32", batch_size=1, **more)


def rolled(model: Any, some: Sequence[Text]) -> list[float]:
    from lm_eval.api.instance import Instance

    requests = [
        Instance(request_type="loglikelihood_rolling", doc={}, arguments=(one.text,), idx=k)
        for k, one in enumerate(some)
    ]
    return [float(value) for value in model.loglikelihood_rolling(requests, disable_tqdm=True)]


def test_bits_equal_lm_evals_rolling_loglikelihood(tiny_model: Path, long_text: str) -> None:
    some = texts([SHORT[0], long_text[:800]])
    theirs = rolled(lm_eval_model(tiny_model, max_length=128), some)
    backend: Any = open_backend(ModelSpec(path=str(tiny_model)))
    ours = {record.id: record for record in backend.measure(some, 128)}
    for one, expected in zip(some, theirs, strict=True):
        record = ours[one.id]
        assert abs(record.logprob - expected) / math.log(2) / record.size < 1e-5


# what cannot be measured


def test_a_window_beyond_the_context_is_refused(tiny_model: Path) -> None:
    backend: Any = open_backend(ModelSpec(path=str(tiny_model), max_length=100))
    with pytest.raises(ModelError, match=r"--window 200 .* reads 100 tokens"):
        list(backend.measure(texts(["a"]), 200))
    with pytest.raises(ModelError, match="stride may be no more than the window"):
        list(backend.measure(texts(["a"]), 50, 60))


class Bare:
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    bos_token = eos_token = "</s>"


def test_without_a_start_token_the_end_token_stands_there_and_without_both_it_stops() -> None:
    tokenizer = Bare()
    with pytest.raises(ModelError, match="neither a start nor an end token"):
        rolling.start_token(tokenizer)
    tokenizer.eos_token_id = 2
    assert rolling.start_token(tokenizer) == rolling.Start(2, "</s>", "eos")
    tokenizer.bos_token_id = 1
    assert rolling.start_token(tokenizer).role == "bos"


def test_an_encoder_and_a_decoder_are_refused(tmp_path: Path, tiny_tokenizer: Any) -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    size = len(tiny_tokenizer)
    shape = {"d_model": 32, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    config = T5Config(vocab_size=size, decoder_start_token_id=2, eos_token_id=1, **shape)
    T5ForConditionalGeneration(config).save_pretrained(tmp_path / "pair")
    tiny_tokenizer.save_pretrained(tmp_path / "pair")
    backend: Any = open_backend(ModelSpec(path=str(tmp_path / "pair")))
    with pytest.raises(ModelError, match="reads from left to right"):
        list(backend.measure(texts(["a"])))


def test_a_server_is_refused_before_it_is_asked(tmp_path: Path) -> None:
    spec = ModelSpec(backend="server", path="m", url="http://127.0.0.1:1/v1")
    with pytest.raises(ModelError, match="of backend server, and only hf"):
        measure("m", spec, [Corpus("g", texts(["a"]))], tmp_path, print)


def test_unknown_tokens_are_counted_and_said(
    tmp_path: Path, tiny_llama: Callable[..., Path]
) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<s>": 0, "</s>": 1, "<unk>": 2, "one": 3, "two": 4}
    core = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    folder = tiny_llama("unk", seed=3, hidden_size=32, intermediate_size=32, num_hidden_layers=1)
    PreTrainedTokenizerFast(tokenizer_object=core, **names).save_pretrained(folder)
    corpus = Corpus("g", texts(["one two three", "two 四"]))
    (found,) = measure("m", ModelSpec(path=str(folder)), [corpus], tmp_path, lambda _: None)
    summary = read_json(found / "summary.json")
    assert (summary["tokens"], summary["unknown"]) == (5, 2)
    assert any("2 of 5 tokens are unknown" in note for note in report.bits([summary]).notes)


# folders


@pytest.fixture
def corpus() -> Corpus:
    rows = [
        text("One is odd.", "a", language="en"),
        text("二是偶数。", "b", language="zh"),
        text("Three is odd as well.", "c", language="en"),
    ]
    return Corpus("mine", rows)


def test_a_summary_is_the_sum_of_its_records(
    tiny_model: Path, tmp_path: Path, corpus: Corpus
) -> None:
    (folder,) = measure("tiny", ModelSpec(path=str(tiny_model)), [corpus], tmp_path, lambda _: None)
    assert folder == tmp_path / "tiny" / f"bits-{corpus.fingerprint[:8]}"
    assert (find_bits(tmp_path), find_runs(tmp_path)) == ([folder], [])
    rows = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    assert {row["id"] for row in rows} == {"a", "b", "c"}
    summary = read_json(folder / "summary.json")
    nats, size = sum(row["logprob"] for row in rows), sum(row["size"] for row in rows)
    assert size == len("One is odd.Three is odd as well.") + 5 * 3
    assert summary["bits_per_byte"]["value"] == pytest.approx(-nats / math.log(2) / size)
    characters = sum(row["characters"] for row in rows)
    perplexity = summary["perplexity_per_character"]
    assert perplexity["value"] == pytest.approx(math.exp(-nats / characters))
    assert perplexity["low"] <= perplexity["value"] <= perplexity["high"]
    english = [row for row in rows if row["language"] == "en"]
    found = summary["languages"]["en"]
    assert found["n"] == 2
    assert found["logprob"] == pytest.approx(sum(row["logprob"] for row in english))
    chinese = summary["languages"]["zh"]["bits_per_byte"]
    assert chinese["n"] == 1
    assert chinese["low"] is chinese["high"] is None  # of one text there is no interval
    start = read_json(folder / "run.json")["windows"]["start"]
    assert start == {"id": 0, "token": "<s>", "role": "bos"}


def test_finished_texts_are_never_measured_again(
    tiny_model: Path, tmp_path: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = ModelSpec(path=str(tiny_model), engine="plain")  # the same to the last bit
    (folder,) = measure("tiny", spec, [corpus], tmp_path, lambda _: None)
    path = folder / "records.jsonl"
    before = read_json(folder / "summary.json")
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:2]) + lines[2][:9])  # as a kill leaves it
    said: list[str] = []
    measure("tiny", spec, [corpus], tmp_path, said.append)
    assert said == ["loading tiny"]
    assert path.read_text().splitlines(keepends=True) == lines
    assert read_json(folder / "summary.json") == before

    def never(*_: Any) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("ceval_suite.bits.open_backend", never)
    assert measure("tiny", spec, [corpus], tmp_path, lambda _: None) == [folder]


def test_a_folder_of_another_model_is_refused(
    tiny_model: Path, tiny_llama: Callable[..., Path], tmp_path: Path, corpus: Corpus
) -> None:
    measure("m", ModelSpec(path=str(tiny_model)), [corpus], tmp_path, lambda _: None)
    other = tiny_llama("odd", seed=9, hidden_size=32, intermediate_size=32, num_hidden_layers=1)
    with pytest.raises(RunError, match="records of another weights_sha256"):
        measure("m", ModelSpec(path=str(other)), [corpus], tmp_path, lambda _: None)


def test_other_texts_windows_or_strides_are_another_folder(corpus: Corpus) -> None:
    others = [
        Corpus("mine", corpus.texts[:2]),
        Corpus("mine", corpus.texts, window=64),
        Corpus("mine", corpus.texts, window=64, stride=32),
        Corpus("mine", [text("One is odd!", "a", language="en"), *corpus.texts[1:]]),
    ]
    assert len({corpus.fingerprint, *(other.fingerprint for other in others)}) == 5


# texts


def test_question_texts_of_tasks_are_passage_and_question_taken_once() -> None:
    found = of_tasks(["sample-mmlu", "sample-agieval"], Selection())
    assert set(found) == {"sample-mmlu", "sample-agieval"}
    assert {one.language for one in found["sample-agieval"]} == {"en", "zh"}
    for group in found.values():
        contents = [one.text for one in group]
        assert len(set(contents)) == len(contents)
        assert all(contents)
    clusters = [one.cluster for one in found["sample-agieval"]]
    assert len(set(clusters)) <= len(clusters)
    assert found["sample-mmlu"][0].id.startswith("sample-mmlu/test/")


def test_files_are_one_text_or_one_a_line(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\ntwo\u2028three\r\n", encoding="utf-8")
    (tmp_path / "b.jsonl").write_text('{"text": "四"}\n\n{"text": " "}\n{"text": "五"}\n')
    found = of_files([f"en={tmp_path / 'a.txt'}", str(tmp_path / "b.jsonl")])
    assert [one.text for one in found["a.txt"]] == ["one\n\ntwo\u2028three\r\n"]
    assert found["a.txt"][0].language == "en"
    assert [(one.id, one.text) for one in found["b.jsonl"]] == [
        ("b.jsonl/0", "四"),
        ("b.jsonl/3", "五"),
    ]
    by_line = of_files([str(tmp_path / "a.txt")], lines=True)["a.txt"]
    assert [one.text for one in by_line] == ["one", "two\u2028three"]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("x.txt", b"", "there is no text in it"),
        ("x.txt", "好\n".encode() + b"\xff", "line 2 is not UTF-8"),
        ("x.jsonl", b'{"text": "a"}\n{"txt": "b"}\n', "line 2 is no JSON object"),
        ("x.jsonl", b"[1]\n", "line 1 is no JSON object"),
        ("x.jsonl", b'{"text": 1}\n', 'line 1: "text" is not a string'),
        ("", b"", "cannot be read"),
    ],
)
def test_unreadable_files_are_named_with_their_line(
    tmp_path: Path, name: str, content: bytes, sentence: str
) -> None:
    path = tmp_path / (name or "none.txt")
    if name:
        path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        of_files([str(path)])
    assert str(path) in str(caught.value)
    assert sentence in str(caught.value)


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.txt").write_text("a")
    with pytest.raises(ConfigError, match=r"two files are called 'a\.txt'"):
        of_files([str(tmp_path / "x" / "a.txt"), str(tmp_path / "y" / "a.txt")])


# the real thing


@pytest.mark.real
@pytest.mark.smollm2
def test_smollm2_on_real_questions_equals_plain_windows_and_lm_eval(
    smollm2: Path, real_data: Path, tmp_path: Path
) -> None:
    # unpacked once: reading the blocks of a GGUF file takes longer than all else here
    tokenizer, model = parts(smollm2.parent, smollm2.name)
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path)
    groups = of_tasks(["mmlu", "cmmlu"], Selection(limit=1, data=real_data))
    some = [*groups["mmlu"][:2], *groups["cmmlu"][:2]]
    joined = text("\n".join(one.text for one in groups["mmlu"][2:5]), "joined")
    backend: Any = open_backend(ModelSpec(path=str(tmp_path), dtype="float32"))
    found = {record.id: record for record in backend.measure([*some, joined], 64, 32)}
    for one in (some[0], some[-1], joined):
        logprob, _ = plain(smollm2.parent, one.text, 64, 32, smollm2.name)
        assert abs(found[one.id].logprob - logprob) / math.log(2) / found[one.id].size < 1e-5
    theirs = rolled(lm_eval_model(tmp_path, max_length=64), some)
    alike = {record.id: record for record in backend.measure(some, 64)}
    for one, expected in zip(some, theirs, strict=True):
        off = abs(alike[one.id].logprob - expected) / math.log(2) / alike[one.id].size
        # float32: of a Chinese word of six characters each byte has 5.8 bits
        assert off < max(1e-5, 4e-6 * -expected / math.log(2) / alike[one.id].size)


def test_a_text_record_survives_the_disk(tmp_path: Path, tiny_model: Path, corpus: Corpus) -> None:
    spec = ModelSpec(path=str(tiny_model))
    (folder,) = measure("tiny", spec, [corpus], tmp_path, lambda _: None)
    backend: Any = open_backend(spec)
    fresh = {record.id: record for record in backend.measure(corpus.texts)}
    kept = {r.id: r for r in read_lines(folder / "records.jsonl", TextRecord)}
    assert kept == fresh


# the command


def test_bits_prints_a_table_or_json_and_keeps_records(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("水在一百度沸腾。\nIce melts.\n", encoding="utf-8")
    options = ["--tasks", "sample-mmlu", "--limit", "2", "--text", f"zh={tmp_path / 'a.txt'}"]
    options += ["--window", "64", "--stride", "32", "--out", str(tmp_path / "runs")]
    command = ["bits", str(tiny_model), *options]
    printed = CliRunner().invoke(app, command)
    assert printed.exit_code == 0, printed.output
    assert "windows of 64 tokens that advance by 32" in printed.stdout
    folders = find_bits(tmp_path / "runs")
    assert len(folders) == 2
    found = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)[0]["rows"]
    assert [row["texts"] for row in found] == ["sample-mmlu", "a.txt"]
    assert [row["language"] for row in found] == ["en", "zh"]
    for row in found:
        (summary,) = (
            s for f in folders if (s := read_json(f / "summary.json"))["group"] == row["texts"]
        )
        assert row["bits per byte"]["value"] == summary["bits_per_byte"]["value"]


def test_bits_without_texts_is_a_sentence(tiny_model: Path) -> None:
    found = CliRunner().invoke(app, ["bits", str(tiny_model)])
    assert isinstance(found.exception, ConfigError)
    assert "give --tasks, --text or both" in str(found.exception)
