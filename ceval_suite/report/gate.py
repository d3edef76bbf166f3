"""The verdict of a gate: a Table, a summary for pull requests, JUnit XML for build servers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any
from xml.etree import ElementTree

from ceval_suite.gate import DROP, Line, Verdict
from ceval_suite.report import board, changes, table
from ceval_suite.schema import Cell, Estimate, Table

_NAME = "ceval-suite gate"


def gate(verdict: Verdict) -> Table:
    """One row a benchmark; the verdict is the title."""
    holm = verdict.rules.mode == "inferiority"
    wide = table.percent(1 - 2 * verdict.rules.alpha).removesuffix(".0")
    columns = ("benchmark", "average", "n", "baseline", "candidate", "change", f"{wide} %")
    columns += ("allowed", "p", *(("p (Holm)",) if holm else ()), "detectable", "verdict")
    return Table(
        title=f"Gate {_word(verdict)}: {verdict.candidate} against {verdict.baseline}",
        columns=columns,
        rows=tuple(_row(verdict, line, holm) for line in verdict.lines),
        notes=tuple(_notes(verdict)),
        numeric=frozenset(range(2, len(columns) - 1)),
    )


def _word(verdict: Verdict) -> str:
    return "failed" if verdict.failed else "passed"


def _row(verdict: Verdict, line: Line, holm: bool) -> tuple[Cell, ...]:
    found = line.finding
    one = found.evidence
    low, high = one.interval(verdict.rules.alpha)
    ends = Estimate(value=one.change, n=one.n, stderr=one.error(0.0), low=low, high=high)
    least = found.detectable
    return (
        table.text(board.label(board.asked(line.about))),
        table.text(line.average),
        table.number(one.n),
        table.estimate(line.baseline),
        table.estimate(line.candidate),
        Cell(text=table.points(one.change), value=one.change),
        changes.interval(ends),
        Cell(text=table.allowed(found.margin), value=found.margin),
        table.probability(found.p),
        *((table.probability(found.adjusted),) if holm else ()),
        table.missing() if least is None else Cell(text=table.points(-least), value=-least),
        table.text("failed" if found.failed else "passed"),
    )


def _notes(verdict: Verdict) -> Iterable[str]:
    alpha = table.percent(verdict.rules.alpha).removesuffix(".0")
    yield (
        "change: candidate less baseline in percentage points, on the same items, by the official "
        "average; its interval holds what neither one-sided test rejects; allowed: the drop that "
        "may be"
    )
    if verdict.rules.mode == "inferiority":
        yield (
            "a benchmark fails where it is proven that it fell by more than allowed: p is that of "
            "the paired score test (one-sided), adjusted for the number of benchmarks (Holm 1979); "
            f"without such a drop any gate fails in {alpha} % of cases at most"
        )
    else:
        yield (
            "a benchmark fails unless it is proven that it fell by less than allowed: p is that of "
            "the paired score test (one-sided); all must pass, so p needs no adjustment, and a "
            f"benchmark that fell by so much passes in {alpha} % of cases at most"
        )
    yield (
        "detectable: the true change that fails in four cases of five, at the discordance seen; a "
        f"change of {table.points(-DROP)} on every benchmark fails this gate in "
        f"{table.percent(verdict.caught)} % of cases, and no change in "
        f"{table.percent(verdict.equal_fails)} %"
    )
    for one in verdict.rules.lists:
        yield f"without the items of {one.name}: {one.title}"


def sentence(line: Line) -> str:
    """What is wrong with a benchmark that failed, or that it passed, in words."""
    found = line.finding
    where = board.label(board.asked(line.about))
    what = f"{where}: {line.average} changed by {table.points(found.evidence.change)} points"
    p = table.probability(found.adjusted).text
    return f"{what} ({table.allowed(found.margin)} allowed, p {p})"


def to_markdown(verdict: Verdict) -> str:
    """A comment for a pull request: the verdict first, then what failed and the table."""
    failed = verdict.failed
    mark = "❌" if failed else "✅"
    sides = f"{_code(verdict.candidate)} against {_code(verdict.baseline)}"
    count = (
        f"{len(failed)} of {len(verdict.lines)} benchmarks failed"
        if failed
        else (f"{len(verdict.lines)} benchmark{'s' * (len(verdict.lines) > 1)}")
    )
    lines = [f"{mark} **Gate {_word(verdict)}**: {sides}, {count}.", ""]
    lines += [f"- {_code(sentence(line))}" for line in failed] + [""] * bool(failed)
    shown = gate(verdict)
    plain = Table(
        title="Benchmarks",
        columns=shown.columns,
        rows=shown.rows,
        notes=shown.notes,
        numeric=shown.numeric,
    )
    return "\n".join(lines) + table.markdown(plain)


def _code(text: str) -> str:
    """Text that nothing in Markdown can be made of: no markup, link, mention or tag."""
    flat = " ".join(table.plain(text).replace("`", "'").split())
    return f"`{flat or '?'}`"


def to_json(verdict: Verdict) -> str:
    """The verdict, what failed, the rules, and the table with its raw values."""
    found: dict[str, Any] = {
        "verdict": _word(verdict),
        "failed": [board.label(board.asked(line.about)) for line in verdict.failed],
        "candidate": verdict.candidate,
        "baseline": verdict.baseline,
        "mode": verdict.rules.mode,
        "alpha": verdict.rules.alpha,
        "drop": {"announced": DROP, "fails": verdict.caught, "none_fails": verdict.equal_fails},
        "table": json.loads(table.to_json(gate(verdict))),
    }
    return json.dumps(found, ensure_ascii=False, indent=1)


def to_junit(verdict: Verdict) -> str:
    """JUnit XML as Jenkins, GitLab and Surefire's readers take it: a test case a benchmark."""
    suite = _suite(len(verdict.lines), failures=len(verdict.failed))
    mode = verdict.rules.mode
    held = ElementTree.SubElement(suite, "properties")
    given = {"candidate": verdict.candidate, "baseline": verdict.baseline, "mode": mode}
    for name, value in {**given, "alpha": str(verdict.rules.alpha)}.items():
        ElementTree.SubElement(held, "property", name=name, value=_xml(value))
    for line in verdict.lines:
        case = _case(suite, board.label(board.asked(line.about)))
        if line.finding.failed:
            failure = ElementTree.SubElement(
                case, "failure", message=_xml(sentence(line)), type=f"gate.{mode}"
            )
            failure.text = _xml("\n".join(gate(verdict).notes))
    return _document(suite)


def trouble_as_markdown(sentence: str) -> str:
    """A comment that says why there is no verdict."""
    return f"⚠️ **Gate without a verdict**: {_code(sentence)}\n"


def trouble_as_junit(sentence: str) -> str:
    """JUnit XML that says why there is no verdict: one test case with an error."""
    suite = _suite(1, errors=1)
    ElementTree.SubElement(_case(suite, "gate"), "error", message=_xml(sentence), type="gate.error")
    return _document(suite)


def _suite(tests: int, *, failures: int = 0, errors: int = 0) -> ElementTree.Element:
    counts = {"tests": tests, "failures": failures, "errors": errors, "skipped": 0}
    shown = {name: str(count) for name, count in counts.items()}
    return ElementTree.Element("testsuite", {"name": _NAME, **shown, "time": "0"})


def _case(suite: ElementTree.Element, name: str) -> ElementTree.Element:
    return ElementTree.SubElement(
        suite, "testcase", {"classname": _NAME.replace(" ", "."), "name": _xml(name), "time": "0"}
    )


def _document(suite: ElementTree.Element) -> str:
    counts = {k: v for k, v in suite.attrib.items() if k != "skipped"}
    whole = ElementTree.Element("testsuites", counts)
    whole.append(suite)
    ElementTree.indent(whole)
    content = ElementTree.tostring(whole, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{content}\n'


def _xml(text: str) -> str:
    """Text without what no XML document may hold, however it is escaped."""
    return re.sub("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "�", text)
