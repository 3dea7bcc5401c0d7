"""The packages know each other in one direction only: whoever reads one has no need of those after it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ORDER = (
    "shards", "mdaug/radar", "mdaug/models", "mdaug/pipeline", "mdaug/measures", "mdaug/training", "mdaug/generation",
    "mdaug/evaluation", "mdaug/recipe", "launch",
)  # fmt: skip


MODULES = {
    str(path.relative_to(ROOT).with_suffix("")).replace("/", ".").removesuffix(".__init__"): path
    for top in ("shards", "mdaug", "launch")
    for path in (ROOT / top).rglob("*.py")
}


def imported(path: Path) -> set[str]:
    """Return the dotted names of all modules that a file imports, also within functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("package", ORDER)
def test_a_package_imports_none_that_comes_after_it(package):
    later = tuple(name.replace("/", ".") for name in ORDER[ORDER.index(package) + 1 :])
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    wrong = {
        (str(path.relative_to(ROOT)), name)
        for path in files
        for name in imported(path)
        if any(name == other or name.startswith(other + ".") for other in later)
    }
    assert not wrong


def test_no_module_imports_itself_through_others():
    """Also where the import stands in a function, or for type checkers only."""
    needs = {
        name: {other for other in imported(path) if other in MODULES and not name.startswith(other)}
        for name, path in MODULES.items()
    }
    # Take away what needs nothing that is left; what cannot be taken away lies on a circle, or needs one.
    while free := {name for name, others in needs.items() if not others & needs.keys()}:
        needs = {name: others for name, others in needs.items() if name not in free}
    assert not needs


def test_modules_of_ours_are_imported_at_the_top():
    """But for the table of commands, whose --help loads nothing, and the package, whose attributes do on demand."""
    inside = {
        name
        for name, path in MODULES.items()
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.ImportFrom)
        and node.module
        and node.module.split(".")[0] in ("shards", "mdaug", "launch")
    }
    assert inside == {"mdaug.cli", "mdaug"}
