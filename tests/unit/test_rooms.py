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
