"""Progress: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import io
import sys

import pytest

from shards.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO) -> str:
    monkeypatch.setattr(sys, "stderr", stream)
    with Progress("packing", 3, "image") as progress:
        for _ in range(3):
            progress.update()
    return stream.getvalue()


def test_bar_on_a_terminal(monkeypatch):
    text = shown(monkeypatch, Terminal())
    assert "packing: 100%|" in text
    assert "\r" in text


def test_plain_lines_elsewhere(monkeypatch):
    text = shown(monkeypatch, io.StringIO())
    assert text.startswith("packing: 3/3 images, ")
    assert text.count("\n") == 1
    assert "\r" not in text


def test_a_line_every_ten_seconds(monkeypatch):
    now = iter([0.0, 4.0, 11.0, 12.0])
    monkeypatch.setattr("time.monotonic", lambda: next(now))
    assert [line.split(",")[0] for line in shown(monkeypatch, io.StringIO()).splitlines()] == [
        "packing: 2/3 images", "packing: 3/3 images",
    ]  # fmt: skip


def test_one_rank_of_a_machine_speaks(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert shown(monkeypatch, Terminal()) == ""
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert "packing" in shown(monkeypatch, Terminal())
