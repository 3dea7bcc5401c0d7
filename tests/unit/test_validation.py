"""Checks of option values: one sentence form, and what identifies a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from shards import validation
from shards.validation import height_width, identity_of, operational, written


@dataclass
class Options:
    value: Any = None


@pytest.mark.parametrize(
    ("check", "value", "message"),
    [
        (lambda o: validation.at_least(o, 1, "value"), 0, "value=0 must be at least 1"),
        (lambda o: validation.at_least(o, 1, "value"), float("nan"), "value=nan must be at least 1"),
        (lambda o: validation.at_least(o, 1, "value"), [3, 0], "value=0 must be at least 1"),
        (lambda o: validation.within(o, "(0, 0.5]", "value"), 0.0, "value=0.0 must be greater than 0 and at most 0.5"),
        (lambda o: validation.within(o, "[0, 1)", "value"), 1, "value=1 must be at least 0 and less than 1"),
        (lambda o: validation.within(o, "(0, inf)", "value"), float("inf"), "value=inf must be greater than 0"),
        (lambda o: validation.multiple_of(o, 8, "value"), 12, "value=12 must be a multiple of 8"),
        (lambda o: validation.ascending(o, "value"), [1, "all", "all"], "must be in ascending order"),
        (lambda o: validation.one_of(o, ("a", "b"), "value"), "c", "value=c must be one of a, b"),
        (lambda o: validation.one_of_each(o, ("a", "b"), "value"), ["a", "a"], "must hold at least one of a, b, each"),
        (lambda o: validation.one_capture_group(o, "value"), "(a)(b)", "must have exactly one capture group, it has 2"),
        (lambda o: validation.one_capture_group(o, "value"), "(", "is not a regular expression"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_named_with_what_is_accepted_and_none_passes(check, value, message):
    check(Options())
    with pytest.raises(ValueError, match=message):
        check(Options(value))


def test_operational_fields_are_no_part_of_a_runs_identity():
    @dataclass
    class Run:
        output_dir: Path = operational()
        device: list[str] = operational(["cpu"])
        sizes: tuple[int, ...] = (1, 2)
        weights: Path = field(default=Path("w"))

    assert identity_of(Run(Path("a"))) == {"sizes": [1, 2], "weights": "w"}
    assert Run(Path("a")).device is not Run(Path("a")).device


@pytest.mark.parametrize("size", [256, "256", "128x256"])
def test_sizes_are_written_as_they_are_read(size):
    assert str(written(*height_width(size))) == str(size)
