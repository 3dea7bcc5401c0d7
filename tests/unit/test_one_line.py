"""The shared assertion on failures fails where it should: it watches every test of the suite."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

import pytest

from shards.errors import UserError
from shards.source import read_folder
from tests.one_line import every_failure_in_one_line, fault_of


@pytest.mark.parametrize(
    ("message", "fault"),
    [
        ("data_dir x is not a folder; give another", ""),
        ("two lines:\nhere", "holds '\\n'"),
        ("expected a <class 'int'> for seed", 'holds "<class \'"'),
        ("bad value", "says too little"),
        ("word " * 300, "is longer than 1000 characters"),
    ],
)
def test_a_message_for_people_is_one_line_of_words(message, fault):
    assert fault_of(message) == fault


def test_every_message_is_looked_at_caught_or_not(tmp_path):
    folder = tmp_path / "two\nlines"
    with pytest.raises(AssertionError, match=r"holds '\\n'"), every_failure_in_one_line(), pytest.raises(UserError):
        read_folder(Path(folder))
    with every_failure_in_one_line(), pytest.raises(UserError):
        read_folder(tmp_path / "absent")


@pytest.mark.parametrize(
    ("text", "is_good"),
    [
        ("error: this is one line", True),
        ("checking: 3/3 images\\nerror: this is one line", True),
        ("Traceback (most recent call last):\\nerror: this is one line", False),
        ("error: this is one line\\nand another one", False),
        ("error: this is one line\\nerror: and another one", False),
    ],
)
def test_every_process_that_refuses_is_looked_at(text, is_good):
    command = [sys.executable, "-c", f"import sys; print('{text}', file=sys.stderr); sys.exit(2)"]
    refused = contextlib.nullcontext() if is_good else pytest.raises(AssertionError, match="more than the one line")
    with refused, every_failure_in_one_line():
        subprocess.run(command, capture_output=True)
