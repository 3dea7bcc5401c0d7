"""What pip installs is whole: a wheel of this checkout works from any folder, without the checkout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from .shards_helpers import numbered_folder

ROOT = Path(__file__).parents[2]
DATA = ("configs", "deepspeed_configs")
PACKAGES = ("launch", "mdaug", "shards", *DATA)


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """Build a wheel of a copy, since building writes into the source, and unpack it as pip would."""
    folder = tmp_path_factory.mktemp("wheel")
    source, site = folder / "source", folder / "site"
    source.mkdir()
    for name in (*PACKAGES, "tests"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "requirements.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = f"import setuptools.build_meta as backend; backend.build_wheel({str(folder)!r})"
    done = subprocess.run([sys.executable, "-c", build], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(site)
    return site


def test_all_modules_and_their_data_are_in_the_wheel_and_nothing_else(installed):
    def files(root: Path) -> set[Path]:
        found = (path for name in PACKAGES for path in (root / name).rglob("*"))
        return {path.relative_to(root) for path in found if path.suffix in (".py", ".yaml", ".json")}

    assert files(installed) == files(ROOT)
    assert {path.name for path in installed.iterdir() if path.suffix != ".dist-info"} == set(PACKAGES)


@pytest.mark.slow
def test_an_installed_mdaug_trains_in_any_folder(installed, tmp_path):
    images = numbered_folder(tmp_path / "images", {"a": list(range(12)), "b": list(range(12))}, size=(16, 16))
    flags = "--image_size 16 --n_layers 1 --base_channels 8 --vq_num_embed 16 --batch_size 4 --train_samples 12"
    folder = tmp_path / "elsewhere"
    folder.mkdir()

    def python(*arguments: str) -> str:
        environment = os.environ | {"PYTHONPATH": str(installed)}
        done = subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    # Nothing of the checkout takes part, whatever else this interpreter has installed.
    assert python("-c", "import mdaug; print(mdaug.__file__)").strip() == str(installed / "mdaug" / "__init__.py")
    command = ["-m", "mdaug", "train-vqvae", "--data_dir", str(images), "--output_dir", "run", *flags.split()]
    python(*command, "--num_workers", "0", "--logging_steps", "1")
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len([line for line in lines if "loss" in line]) == 3
