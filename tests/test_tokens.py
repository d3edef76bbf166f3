"""Letters are resolved in context, with real kinds of tokenizers on real prompts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ceval_suite.backends.tokenizers import audit, load_tokenizer
from ceval_suite.backends.tokenizers import wrap as in_template
from ceval_suite.backends.tokens import LINE, TAIL, Encoder, rows
from ceval_suite.errors import ModelError, PromptError
from ceval_suite.model_spec import ModelSpec
from ceval_suite.prepare import Selection, prepare
from ceval_suite.schema import Request

KINDS = ("bpe", "wordpiece", "unigram", "sentencepiece", "extended", "smollm2")
PROTOCOLS = {
    "mmlu": ("official", "colossal", "lm-eval"),
    "cmmlu": ("official", "colossal", "lm-eval"),
    "ceval": ("official", "colossal", "lm-eval"),
    "agieval": ("official", "colossal", "lm-eval"),
    "gaokao": ("official", "colossal"),
}


def wordpiece(texts: Sequence[str]) -> Any:
    """BERT's kind: [CLS] before and [SEP] after every text, blanks only as borders of words."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    core.normalizer = normalizers.BertNormalizer(lowercase=False)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    core.train_from_iterator(
        texts,
        trainers.WordPieceTrainer(vocab_size=3000, special_tokens=special, show_progress=False),
    )
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


def unigram(texts: Sequence[str]) -> Any:
    """T5's kind: the likeliest split of whole lines, NFKC first, no borders at blanks."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.Unigram())
    core.normalizer = normalizers.NFKC()
    core.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    trainer = trainers.UnigramTrainer(
        vocab_size=2000,
        special_tokens=["<s>", "</s>", "<unk>"],
        unk_token="<unk>",
        show_progress=False,
    )
    core.train_from_iterator((line for text in texts for line in text.splitlines()), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", unk_token="<unk>")


def folder_with(model: bytes, folder: Path) -> Path:
    """A LLaMA checkpoint's tokenizer as many were published: a bare tokenizer.model."""
    folder.mkdir()
    (folder / "tokenizer.model").write_bytes(model)
    config = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return folder


def extended(llama: bytes, chinese: bytes) -> bytes:
    """LLaMA's pieces and the Chinese ones it lacks, as Chinese-LLaMA merged them."""
    from transformers.convert_slow_tokenizer import import_protobuf

    proto: Any = import_protobuf()
    base, more = proto.ModelProto.FromString(llama), proto.ModelProto.FromString(chinese)
    known = {piece.piece for piece in base.pieces}
    for piece in more.pieces:
        if piece.piece not in known:
            base.pieces.add(piece=piece.piece, score=0)
    return base.SerializeToString()


@pytest.fixture(scope="session")
def pieces(real_data: Path) -> dict[str, bytes]:
    """The real SentencePiece models: LLaMA's, and LLaMA's with 17,953 Chinese pieces."""
    folder = real_data.parent / "tokenizers"
    llama = folder / "llama" / "tokenizer.model"
    chinese = folder / "chinese-llama" / "chinese_sp.model"
    if not (llama.is_file() and chinese.is_file()):
        pytest.skip(f"the LLaMA SentencePiece models are not in {folder}")
    base = llama.read_bytes()
    return {"sentencepiece": base, "extended": extended(base, chinese.read_bytes())}


@pytest.fixture(scope="session")
def tokenizer_of(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Any]:
    made: dict[str, Any] = {}

    def make(kind: str) -> Any:
        if kind == "bpe":
            return request.getfixturevalue("tiny_tokenizer")
        if kind == "wordpiece":
            return wordpiece(request.getfixturevalue("sample_texts"))
        if kind == "unigram":
            return unigram(request.getfixturevalue("sample_texts"))
        if kind == "smollm2":
            return load_tokenizer(ModelSpec(path=str(request.getfixturevalue("smollm2"))))
        model = request.getfixturevalue("pieces")[kind]
        folder = folder_with(model, tmp_path_factory.mktemp("pieces") / kind)
        return load_tokenizer(ModelSpec(path=str(folder)))

    def get(kind: str) -> Any:
        if kind not in made:
            made[kind] = make(kind)
        return made[kind]

    return get


@pytest.fixture(scope="session")
def real_requests(real_data: Path) -> list[Request]:
    """First items of a few subjects of every benchmark, as published, under every wording."""
    out: list[Request] = []
    for task, protocols in PROTOCOLS.items():
        for protocol in protocols:
            found = prepare(task, Selection(protocol, limit=1, data=real_data))
            for subject in found.subjects[:: max(1, len(found.subjects) // 3)]:
                renderer = found.renderer(subject)
                prompts = [renderer.render(item) for item in found.items[subject]]
                # letters where they stand; ColossalEval's rule reads others, whatever the context
                out += [replace(p, read_as=()).request() for p in prompts if p.continuations]
    return out


class Watched(Encoder):
    """Counts how often a whole text is tokenised once more for its continuation."""

    whole = 0

    def _joined(self, requests: Any, contexts: Any) -> Any:
        before = self.ids
        self.ids = lambda texts, *, special: self._count(before, texts, special)  # type: ignore[method-assign]
        try:
            return super()._joined(requests, contexts)
        finally:
            del self.ids

    def _count(self, before: Any, texts: Sequence[str], special: bool) -> Any:
        self.whole += special
        return before(texts, special=special)


def whole(tokenizer: Any, text: str, *, template_tokens: bool = False) -> list[int]:
    """The tokens of one text, handed to the tokenizer as it is."""
    found = tokenizer(text, add_special_tokens=not template_tokens, verbose=False).input_ids
    return found[:-1] if found and found[-1] in {tokenizer.sep_token_id} - {None} else found


def directly(tokenizer: Any, request: Request) -> tuple[list[int], list[list[int]]]:
    """Head and tails from whole strings alone, without any of the encoder's short ways."""

    def ids(text: str) -> list[int]:
        return whole(tokenizer, text, template_tokens=request.template_tokens)

    context = ids(request.context)
    full = [ids(request.context + c) for c in request.continuations]
    border = 0
    while border < len(context) and all(
        len(f) > border and f[border] == context[border] for f in full
    ):
        border += 1
    return context[:border], [f[border:] for f in full]


def same(tokenizer: Any, requests: Iterable[Request], encoder: Encoder | None = None) -> None:
    requests = list(requests)
    for request, one in zip(
        requests, (encoder or Encoder(tokenizer)).encode(requests), strict=True
    ):
        head, tails = directly(tokenizer, request)
        assert one.head.tolist() == head, request
        assert [list(tail) for tail in one.tails] == tails, request


def ask(context: str, *continuations: str, **options: Any) -> Request:
    return Request(id="t/test/s/0", context=context, continuations=continuations, **options)


# real prompts


@pytest.mark.real
@pytest.mark.parametrize("kind", KINDS)
def test_the_short_way_equals_tokenising_whole_texts_on_real_prompts(
    kind: str, tokenizer_of: Any, real_requests: list[Request]
) -> None:
    tokenizer = tokenizer_of(kind)
    encoder = Watched(tokenizer)
    same(tokenizer, real_requests, encoder)
    assert len(real_requests) >= 40
    # and the short way is the rule, not the exception
    assert encoder.whole <= len(real_requests) // 4


@pytest.mark.real
@pytest.mark.parametrize(
    ("kind", "english", "chinese"),
    [
        ("sentencepiece", [319, 350, 315, 360], [29909, 29933, 29907, 29928]),
        ("extended", [319, 350, 315, 360], [29909, 29933, 29907, 29928]),
    ],
)
def test_letters_of_the_real_llama_tokenizers(
    kind: str, english: list[int], chinese: list[int], tokenizer_of: Any, real_data: Path
) -> None:
    encoder = Encoder(tokenizer_of(kind))
    for task, protocol, expected in [
        ("mmlu", "official", english),
        ("mmlu", "lm-eval", english),
        ("mmlu", "colossal", english),  # 'Answer: ' ends in a dangling blank
        ("ceval", "official", chinese),
        ("cmmlu", "colossal", chinese),
    ]:
        found = prepare(task, Selection(protocol, limit=1, data=real_data))
        subject = found.subjects[0]
        prompt = found.renderer(subject).render(found.items[subject][0])
        request = replace(prompt, read_as=()).request()
        (one,) = encoder.encode([request])
        assert [list(tail) for tail in one.tails] == [[i] for i in expected], (task, protocol)
        assert one.head[0] == 1
        assert 29871 not in one.head[-1:]  # the blank is part of the letter's token


@pytest.mark.real
def test_a_dangling_blank_is_scored_from_the_border_before_it(
    tokenizer_of: Any, real_requests: list[Request]
) -> None:
    dangling = [r for r in real_requests if r.context.endswith("Answer: ")]
    assert dangling
    tokenizer = tokenizer_of("smollm2")
    for request, one in zip(dangling, Encoder(tokenizer).encode(dangling), strict=True):
        letters = [f" {c}" for c in request.continuations]
        assert [tokenizer.decode(list(tail)) for tail in one.tails] == letters
        assert one.single
        assert tokenizer.decode(one.head.tolist()).endswith("Answer:")


@pytest.mark.real
@pytest.mark.parametrize("kind", ["sentencepiece", "extended"])
def test_a_bare_tokenizer_model_is_read_as_sentencepiece_reads_it(
    kind: str,
    pieces: dict[str, bytes],
    tokenizer_of: Any,
    real_requests: list[Request],
) -> None:
    from sentencepiece import SentencePieceProcessor

    judge: Any = SentencePieceProcessor()
    judge.LoadFromSerializedProto(pieces[kind])
    texts = [request.context for request in real_requests]
    encoder = Encoder(tokenizer_of(kind))
    for text, found in zip(texts, encoder.ids(texts, special=True), strict=True):
        assert found.tolist() == [1, *judge.encode(text)]


@pytest.mark.real
def test_a_bare_tokenizer_model_needs_no_configuration_beside_it(
    pieces: dict[str, bytes], tmp_path: Path
) -> None:
    folder = folder_with(pieces["sentencepiece"], tmp_path / "bare")
    (folder / "tokenizer_config.json").unlink()
    tokenizer = load_tokenizer(ModelSpec(path=str(folder)))
    assert tokenizer("about  abstract").input_ids == [1, 1048, 29871, 9846]
    assert len(tokenizer) == 32000


# contexts that share their shots


class Counting(Encoder):
    """Counts the characters that the tokenizer is given."""

    characters = 0

    def ids(self, texts: Sequence[str], *, special: bool) -> Any:
        self.characters += sum(map(len, texts))
        return super().ids(texts, special=special)


def together(tokenizer: Any, texts: Sequence[str]) -> int:
    """Contexts in one call equal each tokenised whole; returns the characters that this took."""
    encoder = Counting(tokenizer)
    encoder.characters = 0
    found = encoder.contexts(texts, template_tokens=False)
    for text, ids in zip(texts, found, strict=True):
        assert ids.tolist() == whole(tokenizer, text), text
    return encoder.characters


# task, subjects, items of each (all without a number)
SHOTS = [
    ("mmlu", ("abstract_algebra", "high_school_world_history"), None),
    ("mmlu", ("college_mathematics", "moral_scenarios", "professional_law", "virology"), 12),
    ("cmmlu", ("agronomy", "chinese_civil_service_exam", "ancient_chinese"), 40),
    ("agieval", ("lsat-ar", "gaokao-chinese", "gaokao-mathqa"), 25),
]


@pytest.fixture(scope="session")
def real_contexts(real_data: Path) -> list[list[str]]:
    """Contexts of whole subjects, with all their shots and with none."""
    out: list[list[str]] = []
    for task, subjects, limit in SHOTS:
        for shots in (5, 0):
            chosen = Selection("official", shots, None, subjects, limit, real_data)
            found = prepare(task, chosen)
            prompts = [found.renderer(item.subject).render(item) for item in found.scored()]
            out.append([prompt.request().context for prompt in prompts])
    return out


@pytest.mark.real
@pytest.mark.parametrize("kind", KINDS)
def test_contexts_tokenised_below_their_shots_equal_whole_ones(
    kind: str, tokenizer_of: Any, real_contexts: list[list[str]]
) -> None:
    # in one call, where subjects of three benchmarks stand side by side with and without shots
    every = [text for texts in real_contexts for text in texts]
    assert len(every) > 1000
    together(tokenizer_of(kind), every[::-1])


@pytest.mark.real
def test_chat_contexts_tokenised_below_their_shots_equal_whole_ones(
    tokenizer_of: Any, real_contexts: list[list[str]]
) -> None:
    tokenizer = tokenizer_of("smollm2")
    texts = [in_template(tokenizer, text) for text in real_contexts[4]]
    found = Encoder(tokenizer).contexts(texts, template_tokens=True)
    for text, ids in zip(texts, found, strict=True):
        assert ids.tolist() == whole(tokenizer, text, template_tokens=True)


@pytest.mark.real
@pytest.mark.parametrize("kind", KINDS)
def test_shots_that_many_share_are_tokenised_once(
    kind: str, tokenizer_of: Any, real_contexts: list[list[str]]
) -> None:
    texts = real_contexts[0]
    assert len(texts) == 100 + 237
    shots = [text.rsplit("\n\n", 1)[0] for text in texts]
    own = sum(len(text) - len(shot) for text, shot in zip(texts, shots, strict=True))
    # of each of two subjects: the shots, the first text and the last, and one line a question
    most = own + 3 * 2 * max(map(len, texts)) + 2 * LINE * len(texts)
    assert most < sum(map(len, texts)) / 2
    assert together(tokenizer_of(kind), texts) <= most


# where a head ends and how the texts go on, so that the cut falls on none of a tokenizer's borders
ENDS = {
    "inside a word": ("The photosynthes", ["is", "ize", "ising", "es", "", " is"]),
    "inside a number": ("In 19", ["45", "9", "99.5", "", "00 000", "\n"]),
    "inside Chinese": ("中华人民共和", ["国", "国家", "国务院", "", "和", "。"]),
    "inside a code point's neighbours": ("答案是🙂", ["🙂", "\u200d❤️", "\ufe0f", "", "🏽", "a"]),
    "after line feeds": ("one\n\n\n", ["\n", "\n\n", " \n", "x", "", "\t\n"]),
    "after blanks": ("one    ", [" ", "  two", "two", "\n", "", "　"]),
    "after wide blanks": ("一　　", ["　", "二", " ", "", "\n", "　　三"]),
    "after a lone letter": ("x\nA", ["bc", "B", "nswer", "", ":", " "]),
    "on a combining mark": ("e", ["\u0301", "\u0301\u0301", "é", "", "e", "\u200b"]),
    "before a ligature": ("o", ["ﬃ", "ﷺ", "①", "", "Ａ", "½"]),
}
FILLERS = {
    "English": "Some solved question about photosynthesis.\nA. yes\nB. no\nAnswer: A\n\n",
    "Chinese": "题目：下列说法正确的是？A．甲　B．乙\n答案是：A\n\n",
    "one line": "no line feed for a long way, and blanks at odd   places; ",
    "one word": "无空格也无换行的一行文字，",
    "blanks": "x \n \n  \t\n\n",
}


@pytest.mark.parametrize("filler", FILLERS)
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_head_cut_anywhere_changes_no_token(
    kind: str, end: str, filler: str, tokenizer_of: Any
) -> None:
    head, tails = ENDS[end]
    shots = FILLERS[filler] * (1200 // len(FILLERS[filler])) + head
    together(tokenizer_of(kind), [shots + tail for tail in tails])
    # and where the last line is short
    together(tokenizer_of(kind), [f"{shots}\n{head}{tail}\nAnswer:" for tail in tails])


def test_a_text_that_swallows_the_line_feed_before_the_cut_is_tokenised_whole() -> None:
    # neither the first text of the group nor the last shows it
    line = "x" * 50
    merges = [("x", "x" * n + "M") for n in range(50)] + [("Ċ", line + "M")]
    tokenizer = characters(*merges)
    shots = "Q: 1+1\n" * 80 + line
    assert whole(tokenizer, shots + "M")[-1] == tokenizer.convert_tokens_to_ids("Ċ" + line + "M")
    together(tokenizer, [shots + tail for tail in ("a", "A", "M", "Mx", "xM", "z", "")])


def parity() -> Any:
    """The likeliest split of a run of x goes by twos, so its end decides where it begins."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    scores = {"<unk>": 0, "\n": -5, "\nx": -8, "x": -10, "xx": -1, "xy": -1, "y": -6, "a": -3}
    core = Tokenizer(models.Unigram([*scores.items(), ("z", -3)], unk_id=0))
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")


@pytest.mark.parametrize("tail", ["y", "yz", "yy"])
def test_a_cut_that_a_likelier_split_steps_over_is_no_border(tail: str) -> None:
    tokenizer = parity()
    shots = "aza\n" * 120 + "x" * 60
    shown = tokenizer.convert_ids_to_tokens(whole(tokenizer, shots + tail))
    assert shown.count("\nx") == 1
    # the tokens right after the cut are those of the head, and yet the cut is none
    assert whole(tokenizer, "x" * 60 + tail)[:2] == whole(tokenizer, "x" * 60)[:2]
    together(tokenizer, [shots + some for some in ("a", "aa", "az", tail)])


# texts nobody chose

WORDS = [*"AB:：。1a▁é🙂()Ａ", "the", "Answer", "答案", "是", "12", "ab", "ing", "tion"]
SPACES = [" ", "  ", "\n", "\n\n", " \n", "\t", "　"]
SCRAPS = st.lists(st.sampled_from([*SPACES, *WORDS]), max_size=80).map("".join)
CONTINUATIONS = (" A", "B", " B", "C", "\nA", "ing", "1", ":", "。", "答", "  A", "a b c", "：A")


@pytest.mark.parametrize("kind", KINDS)
def test_the_short_way_equals_tokenising_whole_texts_whatever_the_text(
    kind: str, tokenizer_of: Any
) -> None:
    tokenizer = tokenizer_of(kind)
    encoder = Encoder(tokenizer)

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(SCRAPS, st.lists(st.sampled_from(CONTINUATIONS), min_size=1, max_size=4, unique=True))
    def check(context: str, continuations: list[str]) -> None:
        request = ask("Question\n" + context, *continuations)
        head, tails = directly(tokenizer, request)
        unique = {tuple(tail) for tail in tails}
        if not head or not all(tails) or len(unique) < len(tails):
            with pytest.raises(PromptError):
                encoder.encode([request])
        else:
            same(tokenizer, [request], encoder)

    check()


@pytest.mark.parametrize("kind", KINDS)
def test_texts_with_a_common_head_equal_whole_ones_whatever_the_texts(
    kind: str, tokenizer_of: Any
) -> None:
    tokenizer = tokenizer_of(kind)

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(SCRAPS, SCRAPS, st.lists(SCRAPS, min_size=4, max_size=8, unique=True))
    def check(filler: str, end: str, tails: list[str]) -> None:
        head = "Question\n" + (filler or "x") * (500 // max(1, len(filler)) + 1) + end
        together(tokenizer, [head + tail for tail in tails])

    check()


LINES = {
    "English": "the quick brown fox jumps over 13 lazy dogs and ",
    "Chinese with blanks": "下列各句中没有语病的一句是 （　　） ",
    "Chinese": "下列各句中没有语病的一句是（　　），",
    "no blank": "x+y=z;",
    "numbers": "3.14159265358979",
    "emoji": "🙂🏽\u200d🔧",
    "blanks": "a      ",
}


@pytest.mark.parametrize("line", LINES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_question_on_one_long_line_gets_the_letters_of_the_whole_text(
    kind: str, line: str, tokenizer_of: Any
) -> None:
    # longer than a tail by far, of every length up to the next word, and right at the limits
    encoder = Encoder(tokenizer_of(kind))
    requests = [
        ask(f"{start}{(LINES[line] * 40)[:length]}{end}", " A", " B")
        for start in ("", "Question\n")
        for length in (TAIL - 1, TAIL + 1, LINE - 1, LINE, LINE + 1, *range(700, 712))
        for end in ("", "答案：", " Answer:")
    ]
    for request in requests:
        head, tails = directly(encoder.tokenizer, request)
        if head and all(tails) and len({tuple(tail) for tail in tails}) == len(tails):
            same(encoder.tokenizer, [request], encoder)
        else:
            with pytest.raises(PromptError):
                encoder.encode([request])


@pytest.mark.parametrize("kind", KINDS)
def test_of_a_long_line_little_is_tokenised_again(kind: str, tokenizer_of: Any) -> None:
    texts = [LINES["English"] * 100, LINES["Chinese with blanks"] * 100]
    for context in texts:
        encoder = Counting(tokenizer_of(kind))
        encoder.characters = 0
        encoder.encode([ask(context + "Answer:", " A", " B", " C", " D")])
        assert encoder.characters <= len(context) + 5 * (LINE + 10)


# borders


def characters(*merges: tuple[str, str], special: bool = False) -> Any:
    """A byte-level tokenizer of single bytes and the given merges; it may add <s> and </s>."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {t: i for i, t in enumerate(["<s>", "</s>", *letters, *(a + b for a, b in merges)])}
    core = Tokenizer(models.BPE(vocab=vocab, merges=list(merges)))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    if special:
        core.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>")


def test_a_merged_border_is_scored_from_the_last_common_one() -> None:
    # as Qwen merges 'Answer:' + 'A' into the one token ':A' (protocols.md 7.3)
    tokenizer = characters((":", "A"))
    encoder = Encoder(tokenizer)
    request = ask("What is it? Answer:", "A", "B", "C")
    (one,) = encoder.encode([request])
    assert tokenizer.decode(one.head.tolist()) == "What is it? Answer"
    assert [tokenizer.convert_ids_to_tokens(list(tail)) for tail in one.tails] == [
        [":A"],
        [":", "B"],
        [":", "C"],
    ]
    assert not one.single
    found = rows([one], 100, [request])
    # one row for the merged letter, one more for those that need the colon first
    last = len(one.head) - 1
    colon, merged = (tokenizer.convert_tokens_to_ids(t) for t in (":", ":A"))
    b, c = (tokenizer.convert_tokens_to_ids(t) for t in "BC")
    reads = {(len(row.tokens), read) for row in found for read in row.reads}
    assert reads == {
        (last + 1, (last, merged, (0, 0))),
        (last + 2, (last, colon, (0, 1))),
        (last + 2, (last + 1, b, (0, 1))),
        (last + 2, (last, colon, (0, 2))),
        (last + 2, (last + 1, c, (0, 2))),
    }


def test_a_border_that_all_letters_merge_is_one_token_each() -> None:
    tokenizer = characters((":", "A"), (":", "B"))
    (one,) = Encoder(tokenizer).encode([ask("What is it? Answer:", "A", "B")])
    assert one.single
    assert [tokenizer.decode(list(tail)) for tail in one.tails] == [":A", ":B"]


def test_a_merge_that_reaches_back_many_characters_is_found() -> None:
    # the letter turns the whole line into one token: the tail alone would be a wrong border
    word = "=" * 16
    merges = [("=" * n, "=" * n) for n in (1, 2, 4, 8)] + [(word, "A")]
    tokenizer = characters(*merges)
    same(tokenizer, [ask("Q\n" + word, "A", "B"), ask("Q\n" * 40 + word * 8, "A", "B")])


def test_a_merge_that_reaches_back_beyond_the_last_line_is_found() -> None:
    # the letter swallows its whole line, one token after the other, and the line feed before it
    line = "x" * 50
    merges = [("x", "x" * n + "A") for n in range(50)] + [("Ċ", line + "A")]
    tokenizer = characters(*merges)
    request = ask("Q\n" * 40 + line, "A", "B")
    same(tokenizer, [request])
    (one,) = Encoder(tokenizer).encode([request])
    assert tokenizer.decode(one.head.tolist()) == ("Q\n" * 40)[:-1]
    assert [len(tail) for tail in one.tails] == [1, 52]


def test_continuations_of_several_tokens_keep_them_all() -> None:
    tokenizer = characters()
    (one,) = Encoder(tokenizer).encode([ask("The answer is", " red", " blue", " red wine")])
    assert [tokenizer.decode(list(tail)) for tail in one.tails] == [" red", " blue", " red wine"]
    assert [len(tail) for tail in one.tails] == [4, 5, 9]
    assert not one.single


def test_an_end_token_of_the_tokenizer_stands_nowhere() -> None:
    tokenizer = characters(special=True)
    assert tokenizer("ab").input_ids[-1] == 1
    (one,) = Encoder(tokenizer).encode([ask("The answer is:", "A", "B")])
    assert one.head.tolist() == tokenizer("The answer is:").input_ids[:-1]
    assert [tokenizer.decode(list(tail)) for tail in one.tails] == ["A", "B"]
    assert one.single


# what is refused


def test_two_labels_with_the_same_tokens_are_refused(tokenizer_of: Any) -> None:
    unknown = tokenizer_of("wordpiece")
    with pytest.raises(PromptError, match=r"t/test/s/0: .*same tokens.*another protocol"):
        Encoder(unknown).encode([ask("Which sign is it?", " ꙮ", " ꙭ", " A")])


def test_labels_that_differ_by_a_blank_the_tokenizer_drops_are_refused(tokenizer_of: Any) -> None:
    with pytest.raises(PromptError, match="same tokens"):
        Encoder(tokenizer_of("wordpiece")).encode([ask("Answer:", " A", "A")])


@pytest.mark.parametrize("kind", ["bpe", "wordpiece", "unigram"])
@pytest.mark.parametrize("context", ["Answer:", "A long line.\n" * 20 + "Answer:"])
def test_an_empty_continuation_is_refused(kind: str, context: str, tokenizer_of: Any) -> None:
    with pytest.raises(PromptError, match="t/test/s/0: a continuation adds no token"):
        Encoder(tokenizer_of(kind)).encode([ask(context, "", "B")])


def test_no_continuation_at_all_is_refused(tokenizer_of: Any) -> None:
    with pytest.raises(PromptError, match="t/test/s/0: there is no continuation"):
        Encoder(tokenizer_of("bpe")).encode([ask("Answer:")])


def test_an_empty_context_is_refused_without_a_start_token() -> None:
    with pytest.raises(PromptError, match=r"t/test/s/0: .*without a start token"):
        Encoder(characters()).encode([ask("", "A", "B")])


def test_an_empty_context_is_scored_after_a_start_token() -> None:
    (one,) = Encoder(characters(special=True)).encode([ask("", "A", "B")])
    assert one.head.tolist() == [0]
    assert one.single


def test_a_row_longer_than_the_model_reads_is_refused_and_never_cut() -> None:
    encoder = Encoder(characters())
    request = ask("x" * 20, "A", "long")
    encoded = encoder.encode([request])
    assert sum(len(row.tokens) for row in rows(encoded, 24, [request])) == 20 + 23
    with pytest.raises(PromptError, match="t/test/s/0: 24 tokens where the model reads 23"):
        rows(encoded, 23, [request])


# chat


def chatty(tokenizer: Any, start: str) -> Any:
    tokenizer.chat_template = (
        f"{start}[INST] {{{{ messages[0].content }}}} [/INST]\n"
        "{% if add_generation_prompt %}A:\n{% endif %}"
    )
    return tokenizer


def test_a_chat_context_gets_no_second_start_token() -> None:
    tokenizer = chatty(characters(special=True), "<s>")
    encoder = Encoder(tokenizer)
    text = in_template(tokenizer, "Is it A or B?") + "Answer:"
    (chat,) = encoder.encode([ask(text, " A", " B", template_tokens=True)])
    assert chat.head.tolist().count(0) == 1
    assert chat.head[0] == 0
    (plain,) = encoder.encode([ask("Is it A or B?\nAnswer:", " A", " B")])
    assert plain.head.tolist().count(0) == 1
    assert plain.head[0] == 0


@pytest.mark.real
def test_a_chat_context_of_the_real_llama_tokenizer_starts_once(
    pieces: dict[str, bytes], tmp_path: Path
) -> None:
    folder = folder_with(pieces["sentencepiece"], tmp_path / "chat")
    tokenizer = chatty(load_tokenizer(ModelSpec(path=str(folder))), "<s>")
    request = ask(in_template(tokenizer, "A or B?") + "答案：", "A", "B", template_tokens=True)
    (one,) = Encoder(tokenizer).encode([request])
    assert one.head.tolist().count(1) == 1
    assert one.head[0] == 1
    assert [list(tail) for tail in one.tails] == [[29909], [29933]]
    same(tokenizer, [request])


@pytest.mark.real
def test_smollm2s_own_chat_template_equals_transformers_own_tokens(tokenizer_of: Any) -> None:
    tokenizer = tokenizer_of("smollm2")
    turns = [{"role": "user", "content": "Is it A or B?"}]
    expected = tokenizer.apply_chat_template(turns, add_generation_prompt=True).input_ids
    request = ask(in_template(tokenizer, "Is it A or B?"), "A", "B", template_tokens=True)
    (one,) = Encoder(tokenizer).encode([request])
    assert one.head.tolist() == expected


def test_the_same_text_with_and_without_a_template_is_tokenised_apart() -> None:
    encoder = Encoder(characters(special=True))
    plain, chat = encoder.encode([ask("Answer:", "A"), ask("Answer:", "A", template_tokens=True)])
    assert plain.head.tolist() == [0, *chat.head.tolist()]


def test_a_tokenizer_without_a_chat_template_cannot_chat(tokenizer_of: Any) -> None:
    with pytest.raises(ModelError, match="chat template"):
        in_template(tokenizer_of("unigram"), "Is it A or B?")


# small things


def test_the_audit_shows_what_is_scored() -> None:
    tokenizer = characters((":", "A"))
    request = ask("What is it? Answer:", "A", "B")
    (found,) = audit(tokenizer, Encoder(tokenizer).encode([request]), [request])
    assert found["id"] == request.id
    assert found["one_token"] is False
    assert found["continuations"]["A"]["tokens"] == [":A"]
    assert found["continuations"]["B"]["tokens"] == [":", "B"]
    assert found["context_tail"] == "it? Answer"  # the last ten tokens before the border


def test_replies_come_in_the_order_of_the_requests_over_many_chunks(tokenizer_of: Any) -> None:
    tokenizer = tokenizer_of("bpe")
    requests = [ask(f"Question {i}\n{'x ' * (i % 7)}Answer:", " A", " B") for i in range(600)]
    same(tokenizer, requests)
