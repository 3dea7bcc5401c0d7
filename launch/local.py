"""Ranks on this machine through submitit's local executor, and a watch over them.

submitit's controller waits for all of its tasks whatever happens to one of them, so the watch is ours: it streams
rank 0, takes the others down when one fails, passes signals on, and reports which rank failed first.
"""

from __future__ import annotations

import codecs
import contextlib
import os
import random
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import submitit
from submitit.core.utils import JobPaths

from launch import job as jobs
from launch.rank import run_rank
from shards.pool import cores

POLL = 0.1
GRACE = 2.0  # seconds that the other ranks have to report their own errors before they are killed
EXIT_GRACE = 60.0  # seconds from the last report until processes that hang at interpreter exit are killed
A_YEAR = 365 * 24 * 60  # minutes; submitit's own limit is two minutes


def run(entry: str, argv: list[str], output_dir: Path, ranks: int) -> int:
    """Run `entry` on `ranks` processes of this machine and return the exit status of the worst.

    Args:
        entry: "module:function", called as function(argv) in every rank.
        argv: the command and its arguments, the only thing that travels.
        output_dir: ranks log to `<output_dir>/logs/rank-00000.log` and so on; rank 0 is also shown. The record in
            `logs/local/` shows other terminals how the run stands.
        ranks: number of processes; each finds RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT.
    """
    logs = output_dir / "logs"
    jobs.begin_local(argv[0] if argv else entry, output_dir, ranks)
    # Reports and submitit's own files are for this launcher alone.
    with tempfile.TemporaryDirectory(prefix="mdaug-launch-", ignore_cleanup_errors=True) as name, _Signals() as signals:
        scratch = Path(name)
        stream = LogStream(jobs.log_path(logs, 0))

        # Start the ranks: strings travel to them, and an environment in which they find each other.
        executor = submitit.AutoExecutor(folder=scratch / "submitit", cluster="local")
        executor.update_parameters(tasks_per_node=ranks, timeout_min=A_YEAR)
        with submitit.helpers.clean_env(), _environment(ranks):
            visible = os.environ.get("CUDA_VISIBLE_DEVICES")
            job = executor.submit(run_rank, entry, argv, str(logs), str(scratch), visible, os.getpid())

        # Watch them until the last has ended.
        watch = _Watch(job, ranks, scratch, signals)
        try:
            while watch.step():
                stream.forward()
                time.sleep(POLL)
        finally:
            watch.kill()
            stream.forward()
        outcome = watch.conclude(logs)
    jobs.write_outcome(jobs.local_folder(output_dir), *outcome)
    return outcome.status


class _Watch:
    """Follows the ranks of one job from outside."""

    def __init__(self, job: submitit.Job, ranks: int, scratch: Path, signals: _Signals) -> None:
        self.job, self.ranks, self.scratch, self.signals = job, ranks, scratch, signals
        self.controller = psutil.Process(int(job.job_id))
        self.processes: dict[int, psutil.Process] = {}
        self.reports: dict[int, jobs.Report] = {}
        self.signalled: set[int] = set()
        self.deadline: float | None = None
        self.killed = False

    def step(self) -> bool:
        """Look once at every rank and do what is due; False when the job has ended."""
        running = not self.job.done()
        self._find_processes()
        for rank in set(self.processes) - set(self.reports):
            self._look_at(rank)
        if self.signals.count:
            self._pass_signal_on()
        if self.deadline is None and any(self._takes_down(report) for report in self.reports.values()):
            self.deadline = time.monotonic() + GRACE
        elif self.deadline is None and len(self.reports) == self.ranks:
            self.deadline = time.monotonic() + EXIT_GRACE
        if self.signals.count > 1 or (self.deadline is not None and time.monotonic() > self.deadline):
            self.kill()
        return running

    def kill(self) -> None:
        """Kill every rank that still runs."""
        for process in self.processes.values():
            if jobs.is_alive(process):
                self.killed = True
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()

    def conclude(self, logs: Path) -> jobs.Outcome:
        """Print what went wrong, the earliest error first, and return the outcome."""
        for rank in set(range(self.ranks)) - set(self.reports):
            if not self.killed:
                self.reports[rank] = self._unreported(rank)
        failures = sorted((r for r in self.reports.values() if r.error), key=lambda report: report.time)
        lines: list[str] = []
        if failures:
            lines = jobs.describe_failures(failures, self.ranks, logs)
            streamed = 0 in self.reports and self.reports[0].error == failures[0].error  # the error, with rank 0's log
            print("launch: " + "\n".join(lines[:1] + lines[1 + streamed :]), file=sys.stderr, flush=True)
        text = "\n".join(lines)
        if self.signals.count:
            return jobs.Outcome(128 + self.signals.number, text or "asked to stop")
        worst = max((report.status for report in self.reports.values()), default=1)
        status = worst if len(self.reports) == self.ranks else max(worst, 1)
        return jobs.Outcome(status, text or ("done" if status == 0 else f"ended with status {status}"))

    def _find_processes(self) -> None:
        """Learn which child of submitit's controller is which rank."""
        if len(self.processes) == self.ranks:
            return
        with contextlib.suppress(psutil.Error):
            for child in self.controller.children():
                with contextlib.suppress(psutil.Error, KeyError):
                    self.processes.setdefault(int(child.environ()["SUBMITIT_LOCAL_GLOBALID"]), child)

    def _look_at(self, rank: int) -> None:
        dead = not jobs.is_alive(self.processes[rank])  # asked before the report: a rank reports, then ends
        path = jobs.report_path(self.scratch, rank)
        if path.is_file():
            self.reports[rank] = jobs.read_report(path)
        elif dead and not self.killed:
            self.reports[rank] = self._unreported(rank)

    def _unreported(self, rank: int) -> jobs.Report:
        """Describe a rank that left no report: killed, crashed in native code, or never started."""
        error = f"rank {rank} was killed from outside, ran out of memory, or crashed in native code"
        if not jobs.started_path(self.scratch, rank).is_file():
            stderr = JobPaths(self.job.paths.folder, self.job.job_id, rank).stderr
            error = stderr.read_text(errors="replace") if stderr.is_file() else ""
            error = error or f"rank {rank} did not start"
        # Whatever the others report in the same moment is a consequence: put this one before them.
        return jobs.Report(rank=rank, status=1, error=error, stopped=False, time=time.time() - 2 * POLL)

    def _takes_down(self, report: jobs.Report) -> bool:
        """Whether the other ranks cannot go on: one failed, or has left while they may wait for it."""
        if self.signals.count and not report.error:
            return report.stopped  # one that ended in its own way has saved; the others are about to
        return report.status != 0

    def _pass_signal_on(self) -> None:
        """Send SIGTERM once to every rank that can take it: the trainer saves at a step boundary and ends."""
        for rank, process in self.processes.items():
            if rank not in self.signalled and jobs.started_path(self.scratch, rank).is_file():
                self.signalled.add(rank)
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.terminate()


class _Signals:
    """Counts Ctrl-C and SIGTERM while ranks run.

    Children start with SIGINT ignored, so that the terminal's Ctrl-C cannot kill them before they have saved.
    """

    def __enter__(self) -> _Signals:
        self.count, self.number = 0, 0
        self.previous = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
        for number in self.previous:
            signal.signal(number, self._on)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _on(self, number: int, frame: object) -> None:
        self.count += 1
        self.number = number
        text = "stopping; the ranks save and end (again: kill them)" if self.count == 1 else "killing the ranks"
        print(f"\nlaunch: {text}", file=sys.stderr, flush=True)


class LogStream:
    """Shows what is appended to a file from now on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.position = path.stat().st_size if path.exists() else 0
        self.decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def forward(self) -> None:
        """Print what is new."""
        if not self.path.exists():
            return
        with open(self.path, "rb") as file:
            file.seek(self.position)
            new = file.read()
        self.position += len(new)
        if new:
            sys.stdout.write(self.decoder.decode(new))
            sys.stdout.flush()


@contextlib.contextmanager
def _environment(ranks: int) -> Iterator[None]:
    """Set what all ranks share in the environment, for the moment of submission."""
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    if "OMP_NUM_THREADS" not in os.environ:
        shared["OMP_NUM_THREADS"] = str(max(1, cores() // ranks))
    previous = dict(os.environ)
    os.environ.update(shared)
    ignoring = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, ignoring)
        for name in shared:
            del os.environ[name]
        os.environ.update(previous)


def free_port() -> int:
    """Return a free port in [20000, 32000), where no outgoing connection takes it before rank 0 binds it."""
    while True:
        port = random.SystemRandom().randrange(20000, 32000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
