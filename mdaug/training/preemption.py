"""Signals only set a flag; the loop reads it at a step boundary and all ranks save together."""

from __future__ import annotations

import signal
import time

import torch

from mdaug import distributed

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)


ASK_SECONDS, MOST_STEPS = 3.0, 10  # SLURM kills 30 s after the time limit


class StopFlag:
    """Remembers that this process was asked to stop. A second Ctrl-C interrupts at once."""

    def __init__(self) -> None:
        self.raised = False
        self._asked = (0, time.monotonic())  # step, time
        self._next = 0
        self.number = int(signal.SIGTERM)
        self._previous = {number: signal.getsignal(number) for number in SIGNALS}
        for number in SIGNALS:
            signal.signal(number, self._raise)

    def _raise(self, number: int, frame: object) -> None:
        if self.raised and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.raised, self.number = True, number

    def agreed(self, step: int, device: torch.device) -> bool:
        """Return whether any rank was asked to stop, the same answer on all ranks; every rank calls it each step.

        On several GPUs the ranks ask each other only every ASK_SECONDS, at most every 10th step, since the answer waits
        for the device; at step 0 always.
        """
        if distributed.world_size() == 1:
            return self.raised
        if device.type == "cuda" and 0 < step < self._next:
            return False
        last, begun = self._asked
        now = time.monotonic()
        pace = (now - begun) / max(1, step - last)  # seconds of a step
        asked, paces = distributed.sum_over_ranks(
            torch.tensor([float(self.raised), pace], dtype=torch.float64, device=device)
        ).tolist()
        steps = int(ASK_SECONDS * distributed.world_size() / max(paces, 1e-9))  # the same on all ranks
        self._asked, self._next = (step, now), step + max(1, min(MOST_STEPS, steps))
        return asked > 0

    def close(self) -> None:
        """Restore the former signal handlers."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)


def ignore_in_worker(_: int) -> None:
    """Let a data loading process outlive signals meant for its rank (DataLoader `worker_init_fn`)."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
