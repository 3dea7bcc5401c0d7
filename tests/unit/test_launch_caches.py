"""Caches below the home folder, and what killed processes leave in them."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from torch.utils.file_baton import FileBaton

from launch import caches


def test_lock_of_a_dead_compiler_is_removed_and_that_of_a_living_one_stays(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    dead, living = (tmp_path / platform.node() / "py311_cpu" / name / "lock" for name in ("dead", "living"))
    elsewhere = tmp_path / "another-machine" / "lock"
    for path in (dead, living, elsewhere):
        path.parent.mkdir(parents=True)
    dead.touch()
    elsewhere.touch()
    compiler = FileBaton(str(living))
    assert compiler.try_acquire()
    caches.prepare()
    assert [path.exists() for path in (dead, living, elsewhere)] == [False, True, True]
    assert f"removed {dead}" in capsys.readouterr().out
    compiler.release()


def test_extensions_are_compiled_in_a_folder_of_this_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    for _ in range(2):  # a rank inherits what the launcher has set
        caches.prepare()
        assert os.environ["TORCH_EXTENSIONS_DIR"] == str(tmp_path / platform.node())
        from torch.utils.cpp_extension import _get_build_directory

        assert Path(_get_build_directory("op", verbose=False)).is_relative_to(tmp_path / platform.node())
