"""The form of every failure that a user can mend: status 2 and one line on stderr."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest


def one_line(main: Callable[[list[str]], int], argv: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Return the one line in which `main(argv)`, in this process, refuses; fails for any other end."""
    capsys.readouterr()
    status = main(list(argv))
    return _checked(status, capsys.readouterr().err)


def one_line_of(command: Sequence[str], env: Mapping[str, str] | None = None, **options: Any) -> str:
    """Return the one line in which a command, a process of its own, refuses; fails for any other end."""
    done = subprocess.run(command, env=env, capture_output=True, text=True, errors="replace", **options)
    return _checked(done.returncode, done.stderr)


def _checked(status: int, printed: str) -> str:
    assert "Traceback" not in printed
    assert status == 2, printed
    assert printed.startswith("error: ")
    assert printed.count("\n") == 1
    return printed
