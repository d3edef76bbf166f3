r"""Whether two written mathematical answers are the same.

`is_equiv` is the official rule of MATH and AGIEval: both answers are normalised as text and
compared (hendrycks/math modeling/math_equivalence.py, ruixiangcui/AGIEval
src/math_equivalence.py@5c77d073). `symbolic` is a second opinion by sympy: it knows that x+1 is
1+x, and says nothing where it cannot be sure. It works in a process of its own, which is ended
when it takes too long, reads only a small part of LaTeX and evaluates no Python.
"""

from __future__ import annotations

import atexit
import json
import os
import re
import subprocess
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor, wait
from concurrent.futures import TimeoutError as Late
from contextlib import suppress
from importlib.util import find_spec
from typing import Any

from ceval_suite.errors import ConfigError

# ------------------------------------------------------------------------------ the official rule


def is_equiv(a: str | None, b: str | None) -> bool:
    """The official rule: equal after normalisation; as they stand where one cannot be normalised.

    Two answers that are missing are equal, as in the official code.
    """
    if a is None or b is None:
        return a is b
    try:
        return normalised(a) == normalised(b)
    except (IndexError, ValueError):
        return a == b


_FIRST = (
    ("\n", ""),
    ("\\!", ""),
    ("\\\\", "\\"),
    ("tfrac", "frac"),
    ("dfrac", "frac"),
    ("\\left", ""),
    ("\\right", ""),
    ("^{\\circ}", ""),
    ("^\\circ", ""),
    ("\\$", ""),
)
"""What is replaced by what, in this order, before units are taken off."""


def normalised(text: str) -> str:
    r"""An answer as the official rule compares it.

    Line breaks, \!, \left, \right, degrees, \$, units written as \text{ …}, \% and blanks go; \\
    is \; tfrac and dfrac are frac; .5 is 0.5; what stands before one = goes when it is at most two
    characters; \sqrt3 is \sqrt{3}; \frac12 is \frac{1}{2}; 0.5 is \frac{1}{2}; 1/2 of whole numbers
    is \frac{1}{2}.

    Raises:
        IndexError: nothing follows a \sqrt or \frac.
        ValueError: several \text{ …}.
    """
    for old, new in _FIRST:
        text = text.replace(old, new)
    if "\\text{ " in text:
        text, _units = text.split("\\text{ ")
    text = text.replace("\\%", "").replace(" .", " 0.").replace("{.", "{0.")
    if not text:
        return text
    if text[0] == ".":
        text = "0" + text
    sides = text.split("=")
    if len(sides) == 2 and len(sides[0]) <= 2:
        text = sides[1]
    text = _braced_fractions(_braced_roots(text).replace(" ", ""))
    if text == "0.5":
        text = "\\frac{1}{2}"
    return _slash_fraction(text)


def _braced_roots(text: str) -> str:
    head, *tails = text.split("\\sqrt")
    return head + "".join(
        "\\sqrt" + (tail if tail[0] == "{" else "{" + tail[0] + "}" + tail[1:]) for tail in tails
    )


def _braced_fractions(text: str) -> str:
    head, *tails = text.split("\\frac")
    out = head
    for tail in tails:
        if tail[0] == "{":
            out += "\\frac" + tail
        elif len(tail) < 2:
            return text
        elif tail[1] == "{":
            out += "\\frac{" + tail[0] + "}" + tail[1:]
        else:
            out += "\\frac{" + tail[0] + "}{" + tail[1] + "}" + tail[2:]
    return out


def _slash_fraction(text: str) -> str:
    sides = text.split("/")
    if len(sides) != 2:
        return text
    try:
        over, under = (int(side) for side in sides)
    except ValueError:
        return text
    return f"\\frac{{{over}}}{{{under}}}" if text == f"{over}/{under}" else text


# ----------------------------------------------------------------------------- the second opinion

SECONDS = 10.0
"""How long one comparison may take, the start of the process included."""


def can_compare() -> bool:
    """Whether what `symbolic` needs is installed."""
    return find_spec("sympy") is not None and find_spec("antlr4") is not None


def symbolic(a: str, b: str, seconds: float = SECONDS) -> bool | None:
    """Whether two answers are the same by sympy's algebra; None where that cannot be told.

    Pairs, intervals and lists are compared part by part; a list without brackets in another order
    is not judged, nor is what is not plain algebra (words, sums, integrals, factorials, large
    powers, mixed numbers).

    Raises:
        ConfigError: the package that reads LaTeX is not installed.
    """
    if not can_compare():
        raise ConfigError(
            "the second opinion on mathematical answers needs antlr4-python3-runtime, which is not "
            "installed; run pip install 'ceval-suite[math]'."
        )
    one, two = _plain(a), _plain(b)
    if one is None or two is None:
        return None
    if one == two:
        return True
    (shape, parts), (other_shape, others) = _listed(one), _listed(two)
    if shape != other_shape or len(parts) != len(others):
        # 1,000 may be a number or two
        return None if _THOUSANDS.search(a + " " + b) else False
    answers = [_WORKER.same(x, y, seconds) for x, y in zip(parts, others, strict=True)]
    if False in answers:
        return None if len(parts) > 1 and not shape else False
    return None if None in answers else True


_COMMANDS = re.compile(
    "frac|sqrt|cdot|times|div|pi|theta|alpha|beta|gamma|lambda|mu|phi|omega|infty|"
    "sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan|sinh|cosh|tanh|log|ln|exp"
)
_LONGEST = 300
_MOST_DIGITS = 20
_LARGEST_POWER = 1000

_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_DROPPED = re.compile(
    r"\\(?:left|right)(?![a-zA-Z])|\\[!,;:$%]|[$%]|\^\{?\\circ\}?|\\text\{ [^{}]*\}|\s*\.\s*\Z"
)


def _plain(text: str) -> str | None:
    """A text made easy to read, or None where it is not plain algebra of a harmless size."""
    if len(text) > _LONGEST or not text.strip():
        return None
    text = text.translate(str.maketrans("−×·", "-**")).replace("π", "\\pi ")
    text = re.sub(r"\\[dt]frac", r"\\frac", _DROPPED.sub("", text).strip())
    text = _THOUSANDS.sub("", text)
    text = re.sub(r"\\sqrt\s*([0-9A-Za-z])", r"\\sqrt{\1}", text)
    if re.search(r"[^\x20-\x7e]|[!@#&`\"~?;:|_<>]", text):
        return None
    if not all(_COMMANDS.fullmatch(name) for name in re.findall(r"\\([a-zA-Z]+|.?)", text)):
        return None
    bare = re.sub(r"\\[a-zA-Z]+", " ", text)
    if re.search(rf"[A-Za-z]{{3}}|\d{{{_MOST_DIGITS + 1}}}", bare) or re.search(
        r"\d\s*\\frac", text
    ):
        return None
    return text if _small_powers(text) else None


def _small_powers(text: str) -> bool:
    """No power of a power, and all whole exponents together below a bound."""
    product = 1
    for found in re.finditer(r"\^\s*", text):
        exponent = _group(text, found.end())
        if "^" in exponent:
            return False
        for number in re.findall(r"\d+", exponent):
            product *= max(1, int(number))
    return product <= _LARGEST_POWER


def _group(text: str, start: int) -> str:
    """The braces that begin at a place, to where they close; else the one character there."""
    depth = 0
    for at in range(start, len(text)):
        depth += (text[at] == "{") - (text[at] == "}")
        if depth <= 0:
            return text[start : at + 1]
    return text[start:]


def _listed(text: str) -> tuple[str, list[str]]:
    """The brackets around a text and its parts between commas outside of inner brackets."""
    parts, depth, start = [], 0, 0
    outer = text[:1] + text[-1:]
    inner = text[1:-1] if outer in ("()", "[]", "[)", "(]") and "," in text else text
    for at, character in enumerate(inner):
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            parts.append(inner[start:at])
            start = at + 1
    return (outer if inner is not text else ""), [*parts, inner[start:]]


class _Worker:
    """The process that compares; started when first asked, and again after it was ended."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="symbolic")
        atexit.register(self._stop)

    def same(self, a: str, b: str, seconds: float) -> bool | None:
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._stop()
                self._process = _started()
            asked = self._reader.submit(_asked, self._process, a, b)
            try:
                return asked.result(seconds)
            except Late:
                self._stop(asked)
                return None
            except BaseException:  # nobody waits for the answer any more
                self._stop(asked)
                raise

    def _stop(self, asked: Future[bool | None] | None = None) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        if asked is not None:
            wait([asked])
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()


def _started() -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "ceval_suite.equivalence"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )


def _asked(process: subprocess.Popen[str], a: str, b: str) -> bool | None:
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(json.dumps([a, b]) + "\n")
        process.stdin.flush()
        line = process.stdout.readline()
        return json.loads(line) if line else None
    except (OSError, ValueError):  # it ended, or was ended
        return None


_WORKER = _Worker()


def _expressions(text: str) -> tuple[Any, bool]:
    """What a text says as an expression, and whether that is an equation, as left minus right."""
    import sympy
    from sympy.parsing.latex import parse_latex

    read: Any = parse_latex(text, strict=True)
    parsed = read.xreplace({sympy.Symbol("pi"): sympy.pi})
    if not isinstance(parsed, sympy.Equality):
        return sympy.nsimplify(parsed, rational=True), False
    left, right = (sympy.nsimplify(side, rational=True) for side in (parsed.lhs, parsed.rhs))
    if left.is_Symbol and not right.has(left):
        return right, False  # x = 3 says 3
    return left - right, True


def _same(a: str, b: str) -> bool | None:
    try:
        (one, is_equation), (two, other_is) = _expressions(a), _expressions(b)
        if is_equation != other_is:
            return None
        if one == two:
            return True
        same = (one - two).equals(0)
        if is_equation and not same:
            same = True if (one + two).equals(0) else None  # the sides may be exchanged
        return None if same is None else bool(same)
    except Exception:  # whatever sympy says of a text that it cannot read
        return None


def _serve() -> None:
    for line in sys.stdin:
        a, b = json.loads(line)
        sys.stdout.write(json.dumps(_same(a, b)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _serve()
