"""Independent oracle of the prompts, gold labels and averages of the five benchmarks.

Written from the official scripts and the published files, never from `ceval_suite`: the suite's own
rendering is compared with this one, text for text.  Every `official_*` and `colossal_*` function
takes the data root (the folder that holds mmlu/, cmmlu/, ceval/, agieval/ and gaokao-bench/) and
yields `(item_id, prompt)` for every item: subjects in sorted order, rows in file order, ids
`<task>/<split>/<subject>/<row>`.  No prompt is cut to a token budget, and no text is stripped or
normalised unless the script named in the docstring does so.

    python3 tests/oracles.py ../shared/data
"""

from __future__ import annotations

import ast
import csv
import hashlib
import json
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

Item = tuple[str, str]
Gold = tuple[str, "list[str] | None"]

# ------------------------------------------------------------------------------- subject tables
# hendrycks/test categories.py, as tabulated in protocols.md 2.2

MMLU_CATEGORIES: dict[str, tuple[str, ...]] = {
    name: tuple(subjects.split())
    for name, subjects in {
        "STEM": """
            abstract_algebra astronomy college_biology college_chemistry college_computer_science
            college_mathematics college_physics computer_security conceptual_physics
            electrical_engineering elementary_mathematics high_school_biology
            high_school_chemistry high_school_computer_science high_school_mathematics
            high_school_physics high_school_statistics machine_learning
        """,
        "humanities": """
            formal_logic high_school_european_history high_school_us_history
            high_school_world_history international_law jurisprudence logical_fallacies
            moral_disputes moral_scenarios philosophy prehistory professional_law world_religions
        """,
        "social sciences": """
            econometrics high_school_geography high_school_government_and_politics
            high_school_macroeconomics high_school_microeconomics high_school_psychology
            human_sexuality professional_psychology public_relations security_studies sociology
            us_foreign_policy
        """,
        "other (business, health, misc.)": """
            anatomy business_ethics clinical_knowledge college_medicine global_facts human_aging
            management marketing medical_genetics miscellaneous nutrition professional_accounting
            professional_medicine virology
        """,
    }.items()
}

# haonan-li/CMMLU src/categories.py@7aa0f6f; * = also "China specific"
_CMMLU_TABLE = """
# STEM
anatomy 解剖学
astronomy 天文学
college_actuarial_science 大学精算学
college_engineering_hydrology 大学工程水文学
college_mathematics 大学数学
college_medical_statistics 大学医学统计
computer_science 计算机科学
conceptual_physics 概念物理学
electrical_engineering 电气工程
elementary_mathematics 初等数学
genetics 遗传学
high_school_biology 高中生物
high_school_chemistry 高中化学
high_school_mathematics 高中数学
high_school_physics 高中物理学
machine_learning 机器学习
virology 病毒学
# Humanities
arts 艺术学
chinese_history 中国历史 *
chinese_literature 中国文学 *
college_law 大学法律
global_facts 全球事实
international_law 国际法学
jurisprudence 法理学
logical 逻辑学
marxist_theory 马克思主义理论
philosophy 哲学
professional_law 专业法学
world_history 世界历史
world_religions 世界宗教
# Social Science
ancient_chinese 古汉语 *
business_ethics 商业伦理
chinese_civil_service_exam 中国公务员考试 *
chinese_food_culture 中国饮食文化 *
chinese_foreign_policy 中国外交政策 *
chinese_teacher_qualification 中国教师资格 *
college_education 大学教育学
economics 经济学
education 教育学
elementary_chinese 小学语文 *
ethnology 民族学 *
high_school_geography 高中地理
high_school_politics 高中政治 *
journalism 新闻学
management 管理学
marketing 市场营销
modern_chinese 现代汉语 *
professional_accounting 专业会计
professional_psychology 专业心理学
public_relations 公共关系
security_study 安全研究
sociology 社会学
# Other
agronomy 农学
chinese_driving_rule 中国驾驶规则 *
clinical_knowledge 临床知识
college_medicine 大学医学
computer_security 计算机安全
construction_project_management 建设工程管理 *
elementary_commonsense 小学常识 *
elementary_information_and_technology 小学信息技术
food_science 食品科学
human_sexuality 人类性行为
legal_and_moral_basis 法律与道德基础
nutrition 营养学
professional_medicine 专业医学
sports_science 体育学
traditional_chinese_medicine 中医中药 *
"""

# hkust-nlp/ceval subject_mapping.json; * = also "Hard"
_CEVAL_TABLE = """
# STEM
computer_network 计算机网络
operating_system 操作系统
computer_architecture 计算机组成
college_programming 大学编程
college_physics 大学物理 *
college_chemistry 大学化学 *
advanced_mathematics 高等数学 *
probability_and_statistics 概率统计 *
discrete_mathematics 离散数学 *
electrical_engineer 注册电气工程师
metrology_engineer 注册计量师
high_school_mathematics 高中数学 *
high_school_physics 高中物理 *
high_school_chemistry 高中化学 *
high_school_biology 高中生物
middle_school_mathematics 初中数学
middle_school_biology 初中生物
middle_school_physics 初中物理
middle_school_chemistry 初中化学
veterinary_medicine 兽医学
# Social Science
college_economics 大学经济学
business_administration 工商管理
marxism 马克思主义基本原理
mao_zedong_thought 毛泽东思想和中国特色社会主义理论体系概论
education_science 教育学
teacher_qualification 教师资格
high_school_politics 高中政治
high_school_geography 高中地理
middle_school_politics 初中政治
middle_school_geography 初中地理
# Humanities
modern_chinese_history 近代史纲要
ideological_and_moral_cultivation 思想道德修养与法律基础
logic 逻辑学
law 法学
chinese_language_and_literature 中国语言文学
art_studies 艺术学
professional_tour_guide 导游资格
legal_professional 法律职业资格
high_school_chinese 高中语文
high_school_history 高中历史
middle_school_history 初中历史
# Other
civil_servant 公务员
sports_science 体育学
plant_protection 植物保护
basic_medicine 基础医学
clinical_medicine 临床医学
urban_and_rural_planner 注册城乡规划师
accountant 注册会计师
fire_engineer 注册消防工程师
environmental_impact_assessment_engineer 环境影响评价工程师
tax_accountant 税务师
physician 医师资格
"""


def _parse_table(text: str) -> tuple[dict[str, str], dict[str, tuple[str, ...]]]:
    """Read a table into ({subject: Chinese name}, {category: subjects}); `*` rows overlap."""
    names: dict[str, str] = {}
    groups: defaultdict[str, list[str]] = defaultdict(list)
    category = ""
    for line in text.strip().split("\n"):
        if line.startswith("# "):
            category = line[2:]
            continue
        subject, name, *star = line.split()
        names[subject] = name
        groups[category].append(subject)
        if star:
            groups["*"].append(subject)
    return names, {key: tuple(subjects) for key, subjects in groups.items()}


CMMLU_NAMES, CMMLU_CATEGORIES = _parse_table(_CMMLU_TABLE)
CMMLU_CATEGORIES["China specific"] = CMMLU_CATEGORIES.pop("*")
CEVAL_NAMES, CEVAL_CATEGORIES = _parse_table(_CEVAL_TABLE)
CEVAL_CATEGORIES["Hard"] = CEVAL_CATEGORIES.pop("*")

# OpenLMLab/GAOKAO-Bench Bench/OBJ_score_evaluation.py@c214b47
GAOKAO_SUBJECTS: dict[str, tuple[str, ...]] = {
    "English": (
        "2010-2013_English_MCQs",
        "2010-2022_English_Fill_in_Blanks",
        "2010-2022_English_Reading_Comp",
        "2012-2022_English_Cloze_Test",
    ),
    "Math": ("2010-2022_Math_I_MCQs", "2010-2022_Math_II_MCQs"),
    "Chinese": ("2010-2022_Chinese_Lang_and_Usage_MCQs", "2010-2022_Chinese_Modern_Lit"),
    "Physics": ("2010-2022_Physics_MCQs",),
    "Chemistry": ("2010-2022_Chemistry_MCQs",),
    "Biology": ("2010-2022_Biology_MCQs",),
    "History": ("2010-2022_History_MCQs",),
    "Geography": ("2010-2022_Geography_MCQs",),
    "Politics": ("2010-2022_Political_Science_MCQs",),
}

# ------------------------------------------------------------------------------- published files


class Quiz(NamedTuple):
    """One row of MMLU, CMMLU or C-Eval as published; `gold` is None where the file has no label."""

    question: str
    options: tuple[str, ...]
    gold: str | None


def _files(folder: Path, suffix: str) -> dict[str, Path]:
    """{stem without the suffix: path}, sorted; an empty folder is an error, never zero items."""
    found = {path.name.removesuffix(suffix): path for path in folder.glob(f"*{suffix}")}
    if not found:
        raise FileNotFoundError(f"no *{suffix} in {folder}")
    return dict(sorted(found.items()))


def _csv(path: Path) -> list[list[str]]:
    # newline="" keeps a "\r" inside a quoted field; text mode would turn it into "\n"
    with path.open(encoding="utf-8", newline="") as handle:
        return list(csv.reader(handle))


def _quizzes(root: Path, task: str, split: str) -> dict[str, list[Quiz]]:
    """{subject: rows}.  MMLU has no header line; the others start with an index column."""
    suffix = ".csv" if task == "cmmlu" else f"_{split}.csv"
    header, first = (0, 0) if task == "mmlu" else (1, 1)
    return {
        subject: [
            Quiz(row[0], tuple(row[1:5]), row[5] if len(row) > 5 else None)
            for row in (line[first:] for line in _csv(path)[header:])
        ]
        for subject, path in _files(root / task / split, suffix).items()
    }


def _agieval(root: Path) -> dict[str, list[dict[str, Any]]]:
    """{task: records}; split on "\\n" alone, since the texts may hold other line separators."""
    return {
        task: [json.loads(line) for line in path.read_bytes().decode("utf-8").split("\n") if line]
        for task, path in _files(root / "agieval" / "v1", ".jsonl").items()
    }


def _agieval_demos(root: Path, task: str) -> list[dict[str, Any]]:
    """The demos of one task: sheet rows 1, 3, 5, 7, 9; explanations stand in the rows between."""
    sheet = _csv(root / "agieval" / "few_shot_prompts.csv")
    bare = task == "sat-en-without-passage"
    column = sheet[0].index("sat-en" if bare else task)
    demos = [ast.literal_eval(row[column]) for row in sheet[1::2] if row[column]]
    return [{**demo, "passage": None} for demo in demos] if bare else demos


def _gaokao(root: Path) -> dict[str, list[dict[str, Any]]]:
    """{file stem: records} of the objective questions."""
    files = _files(root / "gaokao-bench" / "Objective_Questions", ".json")
    return {stem: json.loads(path.read_bytes())["example"] for stem, path in files.items()}


# ------------------------------------------------------------------- MMLU, CMMLU and C-Eval prompts


@dataclass(frozen=True)
class _LetterForm:
    """A four-option wording: `header` once, then for each question lead, text, options and cue."""

    header: str
    lead: str
    cue: str
    glue: str = ""
    bare_header: str = ""

    def ask(self, quiz: Quiz) -> str:
        options = [f"\n{letter}. {text}" for letter, text in zip("ABCD", quiz.options, strict=True)]
        return self.lead + quiz.question + "".join(options) + self.cue

    def render(self, name: str, demos: Sequence[Quiz], quiz: Quiz) -> str:
        header = self.header if demos else self.bare_header or self.header
        shown = [f"{self.ask(demo)}{self.glue}{demo.gold}\n\n" for demo in demos]
        return header.replace("<subject>", name) + "".join(shown) + self.ask(quiz)


def _letter_items(
    root: Path, task: str, split: str, shots: int, form: _LetterForm, name: Callable[[str], str]
) -> Iterator[Item]:
    demos = _quizzes(root, task, "dev")
    for subject, quizzes in _quizzes(root, task, split).items():
        for row, quiz in enumerate(quizzes):
            prompt = form.render(name(subject), demos[subject][:shots], quiz)
            yield f"{task}/{split}/{subject}/{row}", prompt


_MMLU_HEADER = "The following are multiple choice questions (with answers) about <subject>.\n\n"
_CMMLU_HEADER = "以下是关于<subject>的单项选择题，请直接给出正确答案的选项。\n\n"
_CEVAL_HEADER = "以下是中国关于<subject>考试的单项选择题，请选出其中的正确答案。\n\n"
_COLOSSAL_BARE = (
    "The following is a single-choice question on <subject>. "
    "Answer the question by replying A, B, C or D.\n\n"
)


def official_mmlu(root: Path, split: str = "test", shots: int = 5) -> Iterator[Item]:
    """hendrycks/test evaluate.py@0f23bce (format_subject, format_example, gen_prompt).

    The subject keeps the leading blank of its words, so two blanks follow "about".
    """
    form = _LetterForm(_MMLU_HEADER, lead="", cue="\nAnswer:", glue=" ")
    yield from _letter_items(
        root, "mmlu", split, shots, form, lambda stem: " " + stem.replace("_", " ")
    )


def official_cmmlu(root: Path, split: str = "test", shots: int = 5) -> Iterator[Item]:
    """haonan-li/CMMLU src/mp_utils.py@154f1c3 (gen_prompt without CoT and tokenizer)."""
    form = _LetterForm(_CMMLU_HEADER, lead="题目：", cue="\n答案是：")
    yield from _letter_items(root, "cmmlu", split, shots, form, CMMLU_NAMES.__getitem__)


def official_ceval(root: Path, split: str = "val", shots: int = 5) -> Iterator[Item]:
    """hkust-nlp/ceval README.md@10da8e7, resources/tutorial.md@1247dd6: answer-only completion.

    The evaluators' code puts the English handle into the header; README and tutorial ask for the
    Chinese subject name, which stands here.
    """
    form = _LetterForm(_CEVAL_HEADER, lead="", cue="\n答案：")
    yield from _letter_items(root, "ceval", split, shots, form, CEVAL_NAMES.__getitem__)


def colossal_mmlu(root: Path, split: str = "test", shots: int = 5) -> Iterator[Item]:
    """hpcaitech/ColossalAI ColossalEval dataset/mmlu.py@39c9c23, utils/conversation.py@e07e3e6.

    `shots=0` is its zero-shot wording: another sentence, the instruction of the sample.
    """
    form = _LetterForm(_MMLU_HEADER, "Question: ", "\nAnswer: ", bare_header=_COLOSSAL_BARE)

    def titled(stem: str) -> str:
        return " ".join("US" if word == "us" else word.title() for word in stem.split("_"))

    yield from _letter_items(root, "mmlu", split, shots, form, titled)


def colossal_cmmlu(root: Path, split: str = "test", shots: int = 5) -> Iterator[Item]:
    """hpcaitech/ColossalAI ColossalEval dataset/cmmlu.py@42d7b29, utils/conversation.py@e07e3e6."""
    form = _LetterForm(_CMMLU_HEADER, lead="题目：", cue="\n答案：")
    yield from _letter_items(root, "cmmlu", split, shots, form, CMMLU_NAMES.__getitem__)


def colossal_ceval(root: Path, split: str = "val", shots: int = 5) -> Iterator[Item]:
    """hpcaitech/ColossalAI ColossalEval dataset/ceval.py@295dd2d (it reads dev and test alone)."""
    form = _LetterForm(_CEVAL_HEADER, lead="题目：", cue="\n答案：")
    yield from _letter_items(root, "ceval", split, shots, form, CEVAL_NAMES.__getitem__)


# ---------------------------------------------------------------------------------- AGIEval prompts


@dataclass(frozen=True)
class _ExamWords:
    """The words of one language, in the order in which they appear in a prompt."""

    header: str
    number: str
    choose: str
    verdict: str
    zero_question: str
    zero_options: str
    zero_cue: str
    zero_cloze_cue: str
    zero_default_count: int
    plain_question: str
    plain_choose: str
    plain_cue: str


_ENGLISH = _ExamWords(
    header="Here are the answers for the problems in the exam.",
    number="Problem {}.   ",
    choose="Choose from the following options:    ",
    verdict="The answer is therefore ",
    zero_question="Q: ",
    zero_options=" Answer Choices: ",
    zero_cue="A: Among A through {}, the answer is",
    zero_cloze_cue="A: The answer is",
    zero_default_count=5,
    plain_question="Question: ",
    plain_choose="Choose from the following options: ",
    plain_cue="Answer: ",
)
_CHINESE = _ExamWords(
    header="以下是考试中各个问题的答案。",
    number="问题 {}.   ",
    choose="从以下选项中选择:    ",
    verdict="答案是 ",
    zero_question="问题：",
    zero_options=" 选项：",
    zero_cue="答案：从A到{}, 我们应选择",
    zero_cloze_cue="答案：",
    zero_default_count=4,
    plain_question="问题：",
    plain_choose="从以下选项中选择：",
    plain_cue="答案：",
)
_ENGLISH_EXAMS = frozenset(
    {
        "aqua-rat",
        "gaokao-english",
        "logiqa-en",
        "lsat-ar",
        "lsat-lr",
        "lsat-rc",
        "math",
        "sat-en",
        "sat-en-without-passage",
        "sat-math",
    }
)
_CLOZE_EXAMS = frozenset({"gaokao-mathcloze", "math"})


class _Exam(NamedTuple):
    """How one AGIEval file is worded; a record is a jsonl row or a demo of the sheet."""

    words: _ExamWords
    cloze: bool

    def gold(self, record: Mapping[str, Any]) -> str:
        """What a demo prints: `format` of the label, so a list shows as its Python repr."""
        value = record["answer" if self.cloze else "label"]
        return "" if value is None else f"{value}"

    def official_block(self, record: Mapping[str, Any], number: int) -> str:
        head = self.words.number.format(number)
        if self.cloze:
            return f"{head}{record['question']}\n"
        return (
            f"{head}{record['passage'] or ''} {record['question']}\n"
            f"{self.words.choose}{' '.join(record['options'] or '')}\n"
        )

    def official_few_shot(self, record: Mapping[str, Any], demos: Sequence[dict[str, Any]]) -> str:
        shown = [
            f"{self.official_block(demo, at)}{self.words.verdict}{self.gold(demo)}\n<END>\n"
            for at, demo in enumerate(demos, 1)
        ]
        query = self.official_block(record, len(demos) + 1)
        return f"{self.words.header}\n{''.join(shown)}{query}"

    def official_zero_shot(self, record: Mapping[str, Any]) -> str:
        text = f"{record['passage'] or ''}{self.words.zero_question}{record['question']}"
        if self.cloze:
            return f"{text}\n{self.words.zero_cloze_cue}"
        options = record["options"]
        count = len(options) if len(options) != 1 else self.words.zero_default_count
        cue = self.words.zero_cue.format("ABCDEFG"[count - 1])
        return f"{text}{self.words.zero_options}{' '.join(options)}\n{cue}"

    def colossal_demo(self, record: Mapping[str, Any]) -> str:
        # the blank at the end of the English cue is the one before the letter
        cue = f"\n{self.words.plain_cue}{self.gold(record)}"
        if self.cloze:
            return f"{self.words.plain_question}{record['question']}{cue}"
        return (
            f"{self.words.plain_question}{record['passage'] or ''} {record['question']}\n"
            f"{self.words.plain_choose}{' '.join(record['options'] or '')}{cue}"
        )

    def colossal_query(self, record: Mapping[str, Any]) -> str:
        passage = f"{record['passage']}\n\n" if record["passage"] else ""
        text = f"{passage}{self.words.plain_question}{record['question']}"
        if not self.cloze:
            text += f" {self.words.plain_choose}{' '.join(record['options'])}"
        return f"{text}\n{self.words.plain_cue}"


def _exam(task: str) -> _Exam:
    return _Exam(_ENGLISH if task in _ENGLISH_EXAMS else _CHINESE, task in _CLOZE_EXAMS)


def official_agieval(root: Path, shots: int | None = None) -> Iterator[Item]:
    """ruixiangcui/AGIEval src/dataset_loader.py@9a11e1e, run_prediction.py@54887c3 ("<END>\\n").

    None: few-shot without CoT, completion form, all demos of the sheet; the query has no answer
    cue.  k: the first k demos.  0: `convert_zero_shot`, first stage.
    """
    for task, records in _agieval(root).items():
        exam, demos = _exam(task), _agieval_demos(root, task)[:shots]
        for row, record in enumerate(records):
            few = exam.official_few_shot(record, demos) if demos else None
            yield f"agieval/test/{task}/{row}", few or exam.official_zero_shot(record)


def colossal_agieval(root: Path, shots: int | None = None) -> Iterator[Item]:
    """hpcaitech/ColossalAI ColossalEval dataset/agieval.py@1484693, utils/conversation.py@e07e3e6.

    None: all demos of the sheet.  k: the first k demos.  0: the query alone, without a header.
    """
    for task, records in _agieval(root).items():
        exam, demos = _exam(task), _agieval_demos(root, task)[:shots]
        parts = [exam.words.header, *map(exam.colossal_demo, demos)] if demos else []
        prefix = "".join(f"{part}\n\n" for part in parts)
        for row, record in enumerate(records):
            yield f"agieval/test/{task}/{row}", prefix + exam.colossal_query(record)


# ---------------------------------------------------------------------------- GAOKAO-Bench prompts

_GK_THINK = "请你一步一步思考并将思考过程写在【解析】和<eoe>之间。"
_GK_STRICT = "请你严格按照上述格式作答。"
_GK_WHOLE = "完整的题目回答的格式如下：\n"
_GK_ONE = (
    f"{_GK_THINK}你将从A，B，C，D中选出正确的答案，并写在【答案】和<eoa>之间。\n"
    f"例如：【答案】: A <eoa>\n{_GK_WHOLE}"
)
_GK_PAIR = "【解析】 ... <eoe>\n【答案】 ... <eoa>\n"
_GK_EACH = (
    "请你一步一步思考。每一题你将从A，B，C，D中选出正确的答案，并写在【答案】和<eoa>之间。\n"
    f"例如：（1）【答案】 A <eoa>\n（2）【答案】 B <eoa>\n{_GK_STRICT}\n"
)


def _gaokao_single(subject: str) -> str:
    return f"请你做一道{subject}选择题\n{_GK_ONE}{_GK_PAIR}{_GK_STRICT}\n题目如下："


_GAOKAO_PREFIX: dict[str, str] = {
    "2010-2013_English_MCQs": _gaokao_single("英语"),
    "2010-2022_Biology_MCQs": _gaokao_single("生物"),
    "2010-2022_Chemistry_MCQs": _gaokao_single("化学"),
    "2010-2022_History_MCQs": _gaokao_single("历史"),
    "2010-2022_Math_I_MCQs": _gaokao_single("数学"),
    "2010-2022_Math_II_MCQs": _gaokao_single("数学"),
    "2010-2022_Political_Science_MCQs": _gaokao_single("政治"),
    "2010-2022_Physics_MCQs": (
        f"请你做一道物理选择题。\n{_GK_THINK}"
        "你将从A，B，C，D中选出所有符合题意的答案，并写在【答案】和<eoa>之间。\n"
        f"例如：【答案】 AB <eoa>\n{_GK_WHOLE}"
        f"【解析】 ... <eoe>\n【答案】... <eoa>\n{_GK_STRICT}\n"
    ),
    "2010-2022_Chinese_Lang_and_Usage_MCQs": (
        f"请你做一道语文选择题\n{_GK_ONE}（1）{_GK_PAIR}（2）{_GK_PAIR}{_GK_STRICT}"
        "如果不止一道题，请分别作答\n题目如下："
    ),
    "2010-2022_Chinese_Modern_Lit": (f"请你做一道语文阅读理解题，其中包含三个小题。\n{_GK_EACH}"),
    "2010-2022_English_Fill_in_Blanks": (
        f"请你做一道英语完形填空题,其中包含二十个小题。\n{_GK_EACH}"
    ),
    "2010-2022_English_Reading_Comp": (
        f"请你做一道英语阅读理解题，其中包含三到五个小题。\n{_GK_EACH}"
    ),
    "2010-2022_Geography_MCQs": f"请你做一道地理选择题，其中包含两到三个小题。\n{_GK_EACH}",
    "2012-2022_English_Cloze_Test": (
        "请回答下面的问题，将符合题意的五个选项的字母写在【答案】和<eoa>之间，"
        "例如“【答案】 A B C D E <eoa>\n请严格按照上述格式作答。\n"
    ),
}


def _gaokao_items(root: Path, render: Callable[[str, str], str]) -> Iterator[Item]:
    for stem, records in _gaokao(root).items():
        for row, record in enumerate(records):
            yield f"gaokao/test/{stem}/{row}", render(stem, record["question"].strip())


def official_gaokao(root: Path) -> Iterator[Item]:
    """OpenLMLab/GAOKAO-Bench Bench/bench_function.py@217256d (completion: prefix + question).

    Prefix texts: AdamLeeN/GAOKAO-Bench Bench/Obj_Prompt.json@7135653, an unchanged copy.
    """
    yield from _gaokao_items(root, lambda stem, text: f"{_GAOKAO_PREFIX[stem]}{text}\n")


def colossal_gaokao(root: Path) -> Iterator[Item]:
    """hpcaitech/ColossalAI ColossalEval dataset/gaokaobench.py@f4d023c: one wording, zero-shot."""
    yield from _gaokao_items(root, lambda _, text: f"{text}\n答案：")


# -------------------------------------------------------------------------------------- gold labels


def _agieval_gold(task: str, record: Mapping[str, Any]) -> list[str] | None:
    """Sorted letters of a label ("A B D", ["A", "。"]), a cloze's text; None for an empty one."""
    if task in _CLOZE_EXAMS:
        return [record["answer"]]
    return sorted(set(re.findall("[A-G]", "".join(record["label"] or "")))) or None


def _gaokao_letters(stem: str, answer: list[str]) -> list[str]:
    """One letter per sub-question; Physics keeps a joined string such as "AB" as one entry."""
    return list(answer) if "Physics" in stem else [letter for part in answer for letter in part]


def answers(root: Path, task: str, split: str) -> Iterator[Gold]:
    """Yield (item_id, gold letters), with None where the published file has no label."""
    rows: dict[str, list[list[str] | None]]
    if task in ("mmlu", "cmmlu", "ceval"):
        rows = {
            subject: [None if quiz.gold is None else [quiz.gold] for quiz in quizzes]
            for subject, quizzes in _quizzes(root, task, split).items()
        }
    elif (task, split) == ("agieval", "test"):
        rows = {
            exam: [_agieval_gold(exam, record) for record in records]
            for exam, records in _agieval(root).items()
        }
    elif (task, split) == ("gaokao", "test"):
        rows = {
            stem: [_gaokao_letters(stem, record["answer"]) for record in records]
            for stem, records in _gaokao(root).items()
        }
    else:
        raise ValueError(f"no published split {task}/{split}")
    for subject, golds in rows.items():
        for row, gold in enumerate(golds):
            yield f"{task}/{split}/{subject}/{row}", gold


# ---------------------------------------------------------------------------------------- averages


def _by_subject(
    correct: Mapping[str, bool], subjects: Collection[str] | None
) -> dict[str, list[bool]]:
    groups: defaultdict[str, list[bool]] = defaultdict(list)
    for item_id, right in correct.items():
        subject = item_id.split("/")[2]
        if subjects is None or subject in subjects:
            groups[subject].append(right)
    return dict(groups)


def mmlu_micro(correct: Mapping[str, bool], subjects: Collection[str] | None = None) -> float:
    """hendrycks/test evaluate.py@0f23bce: mean over rows, of all subjects or of a category's."""
    rows = [right for group in _by_subject(correct, subjects).values() for right in group]
    return sum(rows) / len(rows)


def macro_over_subjects(
    correct: Mapping[str, bool], subjects: Collection[str] | None = None
) -> float:
    """Mean of subject accuracies: CMMLU src/mp_utils.py@154f1c3 (get_results), C-Eval, AGIEval."""
    scores = [sum(group) / len(group) for group in _by_subject(correct, subjects).values()]
    return sum(scores) / len(scores)


def gaokao_points(
    root: Path, correct_by_id: Mapping[str, bool | Sequence[float]]
) -> tuple[float, float]:
    """(earned, possible) points of the items given, by OBJ_score_evaluation.py@c214b47.

    A bool stands for every sub-question of its item; a sequence gives the share of each (a partly
    right Physics answer: [0.5]).  The official rate is earned / possible.
    """
    earned = possible = 0.0
    for stem, records in _gaokao(root).items():
        for row, record in enumerate(records):
            share = correct_by_id.get(f"gaokao/test/{stem}/{row}")
            if share is not None:
                parts = [share] * len(record["answer"]) if isinstance(share, bool) else share
                earned += record["score"] * sum(map(float, parts))
                possible += record["score"] * len(record["answer"])
    return earned, possible


average_rules: dict[str, Callable[..., Any]] = {
    "mmlu": mmlu_micro,
    "cmmlu": macro_over_subjects,
    "ceval": macro_over_subjects,
    "agieval": macro_over_subjects,
    "gaokao": gaokao_points,
}

# ------------------------------------------------------------------------------------------ summary


def digest(items: Sequence[Item]) -> str:
    """SHA-256 over every `id NUL prompt NUL`, in order."""
    parts = (f"{item_id}\0{prompt}\0".encode() for item_id, prompt in items)
    return hashlib.sha256(b"".join(parts)).hexdigest()


def _report(name: str, items: Sequence[Item]) -> None:
    item_id, prompt = items[0]
    print(f"{name}: {len(items)} prompts, sha256 {digest(items)}\n  {item_id} {prompt!r}")


def main(root: Path) -> None:
    """Print count, digest and first prompt of every function, and the counts of gold labels."""
    shown: tuple[Callable[..., Iterator[Item]], ...] = (
        official_mmlu,
        official_cmmlu,
        official_ceval,
        official_agieval,
        colossal_mmlu,
        colossal_cmmlu,
        colossal_ceval,
        colossal_agieval,
    )
    for function in shown:
        _report(function.__name__, list(function(root)))
        _report(f"{function.__name__} shots=0", list(function(root, shots=0)))
    _report("official_gaokao", list(official_gaokao(root)))
    _report("colossal_gaokao", list(colossal_gaokao(root)))
    for task, splits in {
        "mmlu": "dev val test",
        "cmmlu": "dev test",
        "ceval": "dev val test",
        "agieval": "test",
        "gaokao": "test",
    }.items():
        for split in splits.split():
            golds = [gold for _, gold in answers(root, task, split)]
            print(f"answers {task}/{split}: {len(golds)} rows, {golds.count(None)} without a label")
    print(f"gaokao points: {gaokao_points(root, {i: True for i, _ in official_gaokao(root)})}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
