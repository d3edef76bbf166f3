"""Nouns at the bottom, verbs above, mouth on top: imports only point down, and this says so."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "ceval_suite"
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if "_data" not in path.parts
}

# a module imports only from groups above its own line, or what its own line names to the left
ORDER = """
__init__
schema errors secrecy stopping beacon
terminal
untrusted
outcome
specs
model_spec
catalog
files exams
data fetch circular request
issues
prompt subset
extract equivalence
protocol answer lock run_files
appending
records
stats bootstrap power
methods stratified
consistency distributions
calibration bias flips
exclusions outcomes inventory
boards
metrics ranking
summary differences
standings inferiority
arrange
comparison
gate
prepare curves
texts finished agreement
rules
papers frames
harness_names rebuilding
harness_groups harness_files
harness_results harness_values harness_folder harness_asked
harness_import exports
relabel
backends.base backends.batching backends.products backends.lending backends.units
backends.ranks
backends.placement
backends.tiles backends.shards
backends.layout backends.undisturbed
backends.native
backends.steps backends.sizes
backends.writing
backends.tokens backends.attention backends.head
backends.stepwise
backends.hub backends.gguf_header backends.transport backends.wire
backends.queries
backends.adapter_files backends.own_code
backends.sources backends.checkpoint
backends.standing
backends.rewriting
backends.gguf_weights
backends.tokenizers backends.quantisers
backends.quantise backends.reach
backends.lexicon backends.adapter_stack backends.weights
backends.growing
backends.adapter_rows
backends.adapter_proof backends.row_init backends.mapped backends.extension_files
backends.adapters
backends.loading backends.forward backends.rolling backends.tally
backends.diagnosis
backends.counting backends.footprint
backends.extension_proof backends.extension_plan
backends.extension_note
backends.merging backends.anatomy backends.requantise backends.extending
backends.rounds backends.seq2seq backends.validity backends.drafts
backends.decoding
backends.composing backends.gathering
backends.hf backends.proof
backends.writer backends.live
backends.server backends.lm_eval backends.vllm
backends.scheduling backends.about
backends.hands
backends.jobs
backends.crew
backends.ray
backends.__init__
asking fitting bits backends.harness loggers alerts arrivals
budget
tokenizer.__init__ tokenizer.scripts tokenizer.material
tokenizer.letters
tokenizer.audit
tokenizer.pieces tokenizer.byte_pairs
tokenizer.sentence_pieces tokenizer.training
tokenizer.extend
tokenizer.written
tokenizer.ordered
tokenizer.corpus tokenizer.encoding tokenizer.prompts
tokenizer.compare
contamination.__init__ contamination.normal contamination.files contamination.numbers
contamination.targets contamination.reading
contamination.index contamination.marks contamination.answers
contamination.scan contamination.verify
contamination.search
verify
run
report.__init__ report.table
report.changes report.calibration report.board report.bits report.listing report.entry
report.agreement report.papers
report.runs
report.leaderboard report.rescored report.curve
report.compare report.quantisation report.extension report.audit report.contamination
report.tokenizers report.tokenizer_plot report.gate
site.__init__ site.chunks
site.collect
site.prompts site.pairs site.tables site.curves
site.column
site.write
preview progress
plan
sweep
report.plan
quantised demo training watching
backends.callback
api
cli_data
cli_model
cli_tokenizer cli_compare cli_export cli_board cli_report cli_contamination cli_harness
cli_runs cli_gate cli_watch cli_workers
cli_plan
cli
launch
__main__
"""
RANK = {name: rank for rank, line in enumerate(ORDER.split("\n")) for name in line.split()}

LONGEST_MODULE = 360
LONGEST_FUNCTION = 60
MOUTHS = (
    "cli",
    "cli_data",
    "cli_model",
    "cli_tokenizer",
    "cli_compare",
    "cli_export",
    "cli_board",
    "cli_report",
    "cli_contamination",
    "cli_harness",
    "cli_runs",
    "cli_gate",
    "cli_watch",
    "cli_workers",
    "cli_plan",
    "launch",
)
DRAWERS = {"utils", "util", "common", "helpers", "helper", "misc", "tools", "lib"}


def tree(name: str) -> ast.Module:
    return ast.parse(MODULES[name].read_text(encoding="utf-8"))


def targets(node: ast.AST) -> Iterator[str]:
    """Full names that an import statement names."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute"
        for alias in node.names:
            yield f"{node.module}.{alias.name}"


def own(target: str) -> str | None:
    """The module of ours that an imported name lies in."""
    if target.split(".")[0] != "ceval_suite":
        return None
    parts = target.split(".")[1:]
    for end in range(len(parts), 0, -1):
        name = ".".join(parts[:end])
        if name in MODULES:
            return name
        if f"{name}.__init__" in MODULES:
            return f"{name}.__init__"
    return "__init__"


def top_level(name: str) -> Iterator[ast.AST]:
    """Import statements outside functions, `if TYPE_CHECKING:` included."""
    stack: list[ast.AST] = [tree(name)]
    while stack:
        node = stack.pop()
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node
        elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            stack.extend(ast.iter_child_nodes(node))


def anywhere(name: str) -> Iterator[ast.AST]:
    return (n for n in ast.walk(tree(name)) if isinstance(n, (ast.Import, ast.ImportFrom)))


def inside_functions(name: str) -> Iterator[ast.AST]:
    outside = {ast.dump(node) + str(node.lineno) for node in top_level(name)}  # type: ignore[attr-defined]
    return (n for n in anywhere(name) if ast.dump(n) + str(n.lineno) not in outside)  # type: ignore[attr-defined]


def functions(name: str) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree(name)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node


def test_every_module_has_its_place_in_the_order() -> None:
    assert set(MODULES) == set(RANK)


# the package names its API for type checkers, and looks it up when it is used (test_api.py)
@pytest.mark.parametrize("name", [m for m in MODULES if m != "__init__"])
def test_imports_only_point_down(name: str) -> None:
    for node in anywhere(name):
        for target in targets(node):
            other = own(target)
            if other is not None and other != name:
                assert RANK[other] < RANK[name], f"{name} imports {other}"


def test_there_is_no_import_cycle() -> None:
    edges = {
        name: {own(t) for node in anywhere(name) for t in targets(node)} - {None, name}
        for name in MODULES
        if name != "__init__"
    } | {"__init__": set()}
    done: set[str] = set()
    while len(done) < len(edges):
        free = {name for name, needs in edges.items() if name not in done and needs <= done}
        assert free, f"a cycle among {sorted(set(edges) - done)}"
        done |= free


@pytest.mark.parametrize("name", [m for m in MODULES if m not in MOUTHS])
def test_only_the_command_line_imports_our_modules_inside_functions(name: str) -> None:
    # lazy own-imports are the fever thermometer of a tangled codebase
    found = [t for node in inside_functions(name) for t in targets(node) if own(t)]
    assert found == []


@pytest.mark.parametrize("mouth", MOUTHS)
def test_the_command_line_imports_nothing_heavy_at_the_top(mouth: str) -> None:
    allowed = {"errors", "__init__", "beacon", "terminal", "outcome", *MOUTHS}
    for node in top_level(mouth):
        for target in targets(node):
            if own(target) not in (None, *allowed):
                parent = next(
                    p
                    for p in ast.walk(tree(mouth))
                    if isinstance(p, ast.If) and "TYPE_CHECKING" in ast.dump(p.test)
                )
                assert ast.dump(node) in {ast.dump(n) for n in parent.body}, target


@pytest.mark.parametrize("name", [m for m in MODULES if not m.startswith("backends.")])
def test_torch_stays_in_the_backends(name: str) -> None:
    roots = {t.split(".")[0] for node in anywhere(name) for t in targets(node)}
    if name == "report.listing":  # doctor names the devices
        roots -= {t for node in inside_functions(name) for t in targets(node)}
    if name.startswith("tokenizer."):  # vocabularies are the matter there; weights are not
        roots -= {"tokenizers"}
    assert not roots & {"torch", "transformers", "safetensors", "tokenizers"}


@pytest.mark.parametrize(
    "name",
    [
        "backends.base",
        "backends.batching",
        "backends.units",
        "backends.scheduling",
        "backends.crew",
        "backends.ray",
        "backends.sources",
        "backends.hub",
        "backends.checkpoint",
    ],
)
def test_planning_and_finding_need_no_torch(name: str) -> None:
    roots = {t.split(".")[0] for node in anywhere(name) for t in targets(node)}
    assert not roots & {"torch", "transformers"}


def test_the_nouns_import_nothing_of_ours() -> None:
    for name in ("schema", "errors"):
        assert not [t for node in anywhere(name) for t in targets(node) if own(t)]


@pytest.mark.parametrize("name", MODULES)
def test_modules_are_short_and_no_drawers(name: str) -> None:
    assert len(MODULES[name].read_text(encoding="utf-8").splitlines()) <= LONGEST_MODULE
    assert not set(name.split(".")) & DRAWERS
    assert len(name.split(".")) <= 2


@pytest.mark.parametrize("name", MODULES)
def test_functions_are_short(name: str) -> None:
    for function in functions(name):
        lines = (function.end_lineno or 0) - function.lineno + 1
        assert lines <= LONGEST_FUNCTION, f"{name}.{function.name} has {lines} lines"


@pytest.mark.parametrize("name", [m for m in MODULES if not m.endswith("__init__")])
def test_every_public_name_has_a_docstring(name: str) -> None:
    module = tree(name)
    assert ast.get_docstring(module)
    for node in module.body:
        if not isinstance(node, (ast.FunctionDef, ast.ClassDef)) or node.name.startswith("_"):
            continue
        assert ast.get_docstring(node), f"{name}.{node.name}"
        if isinstance(node, ast.ClassDef):
            for part in node.body:
                if isinstance(part, ast.FunctionDef) and not part.name.startswith("_"):
                    assert ast.get_docstring(part), f"{name}.{node.name}.{part.name}"


def test_every_function_says_its_types() -> None:
    for name in MODULES:
        for function in functions(name):
            where = f"{name}.{function.name}"
            assert function.returns is not None, where
            arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
            for argument in arguments:
                if argument.arg not in ("self", "cls"):
                    assert argument.annotation is not None, f"{where}({argument.arg})"
