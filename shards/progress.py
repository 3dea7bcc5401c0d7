"""A progress bar on a terminal, a line every ten seconds elsewhere."""

from __future__ import annotations

import os
import sys
import time

from tqdm import tqdm


class Progress:
    """Counts up to `total`; a context manager. Only the first rank of a machine shows it.

    Args:
        name: what is being done, such as "packing".
        total: how many units there are.
        unit: what is counted, such as "image".
    """

    def __init__(self, name: str, total: int, unit: str):
        self.name, self.total, self.unit = name, total, unit
        self.count = 0
        self.start = self.last_line = time.monotonic()
        self.shown = os.environ.get("LOCAL_RANK", os.environ.get("RANK", "0")) == "0"
        self.bar = None
        if self.shown and sys.stderr.isatty():
            self.bar = tqdm(total=total, desc=name, unit=unit)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def update(self, count: int = 1) -> None:
        """Count some more units."""
        self.count += count
        now = time.monotonic()
        if self.bar is not None:
            self.bar.update(count)
        elif self.shown and (self.count == self.total or now - self.last_line > 10):
            self.last_line = now
            rate = self.count / max(now - self.start, 1e-9)
            speed = f"{rate:.0f}" if rate >= 10 else f"{rate:.2f}"
            print(f"{self.name}: {self.count}/{self.total} {self.unit}s, {speed}/s", file=sys.stderr, flush=True)


def say(text: str) -> None:
    """Print on the first rank alone."""
    if os.environ.get("RANK", "0") == "0":
        print(text, flush=True)
