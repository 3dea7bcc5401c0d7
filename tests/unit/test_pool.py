"""A pool of processes: results in order, errors as they are, and a killed worker is an error of one line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from shards.errors import UserError
from shards.pool import Pool


def square(number: int) -> int:
    if number < 0:
        raise ArithmeticError(number)
    return number**2


def scale(number: int, factor: int, offset: int) -> int:
    return factor * number + offset


def die(number: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_order_and_errors_as_they_are(workers):
    with Pool(workers) as pool:
        assert list(pool.map(square, range(50))) == [number**2 for number in range(50)]
        with pytest.raises(ArithmeticError):
            list(pool.map(square, [1, -1]))


@pytest.mark.parametrize("workers", [1, 2])
def test_shared_arguments_reach_every_job(workers):
    with Pool(workers, shared=(3, 1)) as pool:
        assert list(pool.map(scale, range(9), chunk=1)) == [3 * number + 1 for number in range(9)]


def test_no_more_processes_than_work():
    assert Pool(64, jobs=3).workers == 3


def test_a_killed_worker_is_one_line():
    with Pool(2) as pool, pytest.raises(UserError, match="a worker process was killed") as error:
        list(pool.map(die, [1, 2]))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("maps", [0, 1])
def test_ctrl_c_says_nothing_of_waiting_where_nothing_is_at_work(capfd, maps):
    pool = Pool(2).__enter__()
    for _ in range(maps):
        assert list(pool.map(square, range(4))) == [0, 1, 4, 9]
    pool.__exit__(KeyboardInterrupt)
    assert "Ctrl-C" not in capfd.readouterr().err


INTERRUPTED = """
import time
from shards.errors import entry_point, run_process
from shards.pool import Pool

def job(number):
    print("begun", flush=True)
    time.sleep(60)

@entry_point
def main(argv):
    with Pool(2, 4) as pool:
        list(pool.map(job, range(4), chunk=1))
    return 0

if __name__ == "__main__":
    run_process(main)
"""


def test_ctrl_c_waits_for_what_has_begun_and_says_so_and_a_second_one_does_not_wait(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(INTERRUPTED)
    process = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    assert [process.stdout.readline() for _ in range(2)] == ["begun\n"] * 2
    os.killpg(process.pid, signal.SIGINT)
    assert process.stdout.readline() == "\n"
    assert "Ctrl-C again" in process.stdout.readline()
    assert process.poll() is None
    time.sleep(0.5)
    os.killpg(process.pid, signal.SIGINT)
    rest, _ = process.communicate(timeout=30)  # a job takes 60 s
    assert process.returncode == 130
    assert "Traceback" not in rest
