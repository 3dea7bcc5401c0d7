"""The form of every failure that a user can mend: status 2 and one line on stderr."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from shards.errors import UserError

LONGEST = 1000  # characters that a person may still read
NOT_WORDS = ("\n", "\r", "Traceback", "<class '", " object at 0x", "typing.")  # in messages for people
RUN = subprocess.run
TESTS = str(Path(__file__).parent)


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


@contextlib.contextmanager
def every_failure_in_one_line() -> Iterator[None]:
    """Fail at the end if the code under test raised a UserError, caught or not, that is not one line of words.

    So it does for a process that was run meanwhile and ended with status 2: its last line is its only error.
    """
    wrong: list[str] = []

    def raised(self: UserError, *args: object) -> None:
        Exception.__init__(self, *args)
        if not sys._getframe(1).f_code.co_filename.startswith(TESTS) and (fault := fault_of(str(self))):
            wrong.append(f"{fault}: {str(self)!r}")

    def ran(*args: Any, **options: Any) -> subprocess.CompletedProcess:
        done = RUN(*args, **options)
        printed = done.stderr.decode(errors="replace") if isinstance(done.stderr, bytes) else done.stderr or ""
        errors = [line for line in printed.splitlines() if line.startswith("error: ")]
        if done.returncode == 2 and (errors or "Traceback" in printed):
            if "Traceback" in printed or len(errors) != 1 or printed.splitlines()[-1] != errors[0]:
                wrong.append(f"more than the one line of an error: {printed[-2000:]}")
            elif fault := fault_of(errors[0]):
                wrong.append(f"{fault}: {errors[0]!r}")
        return done

    with mock.patch.object(UserError, "__init__", raised), mock.patch.object(subprocess, "run", ran):
        yield
    assert not wrong, "\n".join(wrong)


def fault_of(message: str) -> str:
    """Return what keeps a message from being one line of words for people, "" for nothing."""
    if found := [each for each in NOT_WORDS if each in message]:
        return f"holds {found[0]!r}"
    if len(message.split()) < 3:
        return "says too little"
    return f"is longer than {LONGEST} characters" if len(message) > LONGEST else ""
