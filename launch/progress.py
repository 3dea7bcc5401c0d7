"""How far the command of a job has come, by what it leaves on disk."""

from __future__ import annotations

import json
import time
from pathlib import Path

from launch import attempt
from launch.attempt import Job, shards
from launch.rank import log_path
from shards.progress import LINE

TAIL = 1 << 16  # bytes of a log in which its last line of progress is looked for


def told(job: Job, since: float | None) -> str | None:
    """Return how far a job is and what time is left, as far as that can be told; None before there is anything.

    Args:
        job: the job.
        since: when its ranks began, while they run (seconds since the epoch). None: nothing runs, no time is left.
    """
    output = Path(job.output_dir)
    if (record := _last_record(output / "metrics.jsonl")) is not None:
        text = (
            f"{record['samples']:,} samples, epoch {record['epoch']:.2f}, loss {record['loss']:.4g}, "
            f"{record['img_s']:.1f} img/s"
        )
        return text if since is None else f"{text}, {duration(record['eta_s'])} left"
    made = shards(output)
    total = _total(output / "plan.json")
    text = f"{len(made)} of {total} shards ({len(made) / total:.0%})" if total else attempt.progress(output)
    if total and since is None:
        return text
    if total and since is not None and (fresh := sum(path.stat().st_mtime > since for path in made)):
        return f"{text}, {duration((total - len(made)) * (time.time() - since) / fresh)} left"
    said = _said_by_rank_0(log_path(Path(job.logs), 0), running=since is not None)
    return "; ".join(part for part in (text, said) if part and part != attempt.NOTHING) or None


def _total(plan: Path) -> int | None:
    """Return the number of shards that `encode` or `generate` have planned."""
    if not plan.is_file():
        return None
    wanted = json.loads(plan.read_text(encoding="utf-8"))
    if "counts" in wanted:
        return -(-sum(wanted["counts"].values()) // wanted["samples_per_shard"])
    return wanted.get("shards")


def _said_by_rank_0(log: Path, *, running: bool) -> str | None:
    """Return the last line of `shards.progress` in a log, with the time left at its rate if the rank runs."""
    if not log.is_file():
        return None
    with open(log, "rb") as file:
        file.seek(max(0, log.stat().st_size - TAIL))
        lines = LINE.findall(file.read().decode(errors="replace"))
    if not lines:
        return None
    name, count, total, unit, rate = lines[-1]
    left = (int(total) - int(count)) / float(rate) if float(rate) else 0.0
    return f"rank 0: {name} {count} of {total} {unit}" + (f", {duration(left)} left" if running and left else "")


def _last_record(path: Path) -> dict | None:
    """Return the last training record of a metrics.jsonl, or None."""
    if not path.is_file():
        return None
    for line in reversed(path.read_text(encoding="utf-8").splitlines()):
        try:
            record = json.loads(line)
        except json.JSONDecodeError:  # the line that is being written
            continue
        if "eta_s" in record and "loss" in record:
            return record
    return None


def duration(seconds: float) -> str:
    """Return a time as text, such as 1 d 01:01:01."""
    days = f"{int(seconds // 86400)} d " if seconds >= 86400 else ""
    return days + time.strftime("%H:%M:%S", time.gmtime(seconds % 86400))
