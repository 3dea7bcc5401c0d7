"""A pool of processes: results in order, errors as they are, and a killed worker is an error of one line."""

from __future__ import annotations

import os
import signal

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
