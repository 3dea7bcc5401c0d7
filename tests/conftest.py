"""How several processes share the tests (`pytest -n 2`): a file stays in one, and all files that use Slurm together.

Where there are GPUs only the tests marked gpu see them: the others want several ranks, which is a GPU each, and sums in
the order of a CPU.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.one_line import every_failure_in_one_line

ON_SLURM = "tests/slurm/"


def pytest_configure(config: pytest.Config) -> None:
    """Hide the GPUs before anything asks for them."""
    if "not gpu" in config.option.markexpr:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest in one process, so that no other has to wait for it in the end."""
    items.sort(key=lambda item: not item.nodeid.startswith(ON_SLURM))


@pytest.fixture(autouse=True)
def _every_failure_is_one_line() -> Iterator[None]:
    with every_failure_in_one_line():
        yield


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Share out whole files, for what their module fixtures made serves all of their tests."""
    from xdist.scheduler import LoadScopeScheduling

    config.option.loadscopereorder = False  # the order of the files is that of the collection

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return ON_SLURM if nodeid.startswith(ON_SLURM) else nodeid.partition("::")[0]

    return ByFile(config, log)
