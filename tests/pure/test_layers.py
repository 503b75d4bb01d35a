"""The house rules: imports only point down, sizes stay within budget, names stay where they belong.

The layer table is the one of the architecture page (docs/architecture.md).
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "offramp"
ROWS = [
    {"errors", "cache"},
    {"units", "names"},
    {"chips"},
    {"costs"},
    {"tape"},
    {"device", "identity", "audit", "record"},
    {"launch"},
    {"train", "calibrate", "compare", "plan"},
    {"validate"},
    {"report"},
    {"cli"},
]
ROW_OF = {part: row for row, parts in enumerate(ROWS) for part in parts}
TORCH_FREE = {part for row in ROWS[:5] for part in row} | {"audit", "report", "cli"}
MODULES = sorted(SOURCE.rglob("*.py"))
MODULE_NAMES = {
    ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts).removesuffix(".__init__")
    for path in MODULES
}
CODE = sorted(
    path
    for folder in ("src", "tests", "bench", "examples")
    for pattern in ("*.py", "*.cpp", "*.h")
    for path in (ROOT / folder).rglob(pattern)
)


def part_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported_names(tree: ast.AST) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            full = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= full
            if not full <= MODULE_NAMES:  # `from package import module` needs the module only
                names.add(node.module or "")
    return names


def top_level_imports(tree: ast.Module) -> set[str]:
    body = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    return imported_names(ast.Module(body=list(body), type_ignores=[]))


def identify(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", MODULES, ids=identify)
def test_imports_point_down(path: Path) -> None:
    part = part_of(path)
    if part in {"__init__", "__main__"}:
        return
    assert part in ROW_OF, f"{part} is not in the layer table"
    for name in imported_names(ast.parse(path.read_text())):
        if not name.startswith("offramp."):
            continue
        target = name.split(".")[1]
        if target == part or target not in ROW_OF:
            continue
        assert ROW_OF[target] < ROW_OF[part], f"{part} imports {name}, which is not below it"


@pytest.mark.parametrize("path", MODULES, ids=identify)
def test_torch_is_imported_only_where_the_table_allows(path: Path) -> None:
    if part_of(path) in TORCH_FREE:
        names = imported_names(ast.parse(path.read_text()))
        assert not {name for name in names if name.split(".")[0] == "torch"}


def test_no_import_cycles() -> None:
    graph: dict[str, set[str]] = {}
    for path in MODULES:
        dotted = ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts)
        dotted = dotted.removesuffix(".__init__")
        graph[dotted] = top_level_imports(ast.parse(path.read_text()))
    state: dict[str, str] = {}

    def visit(name: str, trail: tuple[str, ...]) -> None:
        if state.get(name) == "done" or name not in graph:
            return
        assert state.get(name) != "open", f"import cycle: {' -> '.join((*trail, name))}"
        state[name] = "open"
        for target in sorted(graph[name] - {name}):
            visit(target, (*trail, name))
        state[name] = "done"

    for name in graph:
        visit(name, ())


def test_import_loads_no_torch_and_does_nothing() -> None:
    code = "import sys, offramp; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("path", MODULES, ids=identify)
def test_chip_names_live_in_data_files(path: Path) -> None:
    text = path.read_text().lower()
    for chip in (SOURCE / "chips" / "data").glob("*.toml"):
        if chip.stem != "cpu":
            assert chip.stem not in text, f"{chip.stem} is named in code"


@pytest.mark.parametrize("name", ["record.recording", "record.part", "compare.run"])
def test_recordings_are_read_and_judged_without_torch(name: str) -> None:
    code = f"import sys, offramp.{name}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("path", MODULES, ids=identify)
def test_cuda_is_named_only_in_identity_and_audit(path: Path) -> None:
    if part_of(path) not in {"identity", "audit"}:
        assert "torch.cuda" not in path.read_text()


@pytest.mark.parametrize("path", MODULES, ids=identify)
def test_only_the_command_line_prints_and_exits(path: Path) -> None:
    if part_of(path) == "cli":
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in {"print", "exit", "quit"}


@pytest.mark.parametrize("path", CODE, ids=identify)
def test_files_stay_within_their_budget(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert len(lines) <= 400
    assert not [number for number, line in enumerate(lines, 1) if len(line) > 100]


@pytest.mark.parametrize("path", [p for p in CODE if p.suffix == ".py"], ids=identify)
def test_functions_stay_within_their_budget(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        assert (node.end_lineno or 0) - node.lineno < 60, f"{node.name} is too long"
        arguments = node.args
        named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        count = len([a for a in named if a.arg not in {"self", "cls"}])
        assert count <= 8, f"{node.name} takes {count} parameters"


def test_metadata_names_only_what_is_used() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {re.split(r"[><=\[]", spec)[0] for spec in project["dependencies"]}
    assert names <= {"torch", "numpy", "ninja", "rich", "setuptools"}, "core dependencies stay few"
