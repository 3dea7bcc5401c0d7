"""A finished folder is finished as long as all its files are there: the command mends it, or names what it cannot.

Every file of the finished folder of every command is removed, emptied and cut in half, in turn. The same command again
ends with the bytes that were there, or with one line that names the file; so does the next command that reads the
folder, whose result is that of the whole folder.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mdaug import cli
from shards import output_folder, provenance
from shards.errors import UserError
from shards.output_folder import claim
from tests.ranks import run_ranks
from tests.toy import toy_image

TIMED = {"log.txt", ".owner", ".lock", ".claim"}  # files that hold times or processes
NETWORK = "--batch_size 8 --num_workers 0 --logging_steps 1 --early_stop_patience 0 --image_size 16"
VQVAE = f"--n_layers 1 --base_channels 8 --vq_num_embed 16 --epochs 2 --lr 2e-3 {NETWORK}"
LDM = (
    "--block_out_channels [16,32] --layers_per_block 1 --num_heads 2 --norm_num_groups 8 --window_size 4 --lr 2e-3 "
    f"--train_samples 48 --val_samples 24 --ema_profiles [0.05,0.10] {NETWORK}"
)
GENERATE = "--num_samples 12 --samples_per_shard 8 --num_inference_steps 2 --batch_size 8"
EVALUATE = "--n_real_per_class [2] --synthetic_per_real [1] --seeds 1 --steps 2 --image_size 16 --workers 1"

RECORDS = ("run.json", "provenance.json", "log.txt")
ANEW = ("ema", "reconstruct")  # they make all of their files each time
SLOW = (
    "train-vqvae",
    "train-ldm",
    "generate",
    "evaluate",
    "augment",
)  # to mend: the files of a sub-folder are damaged together

# Command -> (its output folder, its flags, the commands that read the folder).
COMMANDS = {
    "simulate": ("pictures", "--output_dir pictures --classes [walking,bird] --images_per_class 4 --images_per_group 2 "
                 "--image_size 32 --workers 1", ["pack --workers 1 --data_dir pictures"]),
    "spectrogram": ("converted", "--data_dir recordings --output_dir converted --carrier_hz 5.8e9 --prf_hz 1000 "
                    "--v_max_m_s 3 --image_size 16 --workers 1", ["pack --workers 1 --data_dir converted"]),
    "pack": ("packed", "--data_dir images --output_dir packed --group_by _(r.)_ --shard_size 8 --workers 1",
             ["encode --num_workers 0 --data_dir packed --vqvae_path vqvae"]),
    "train-vqvae": ("vqvae", f"--data_dir packed --output_dir vqvae {VQVAE}",
                    ["encode --num_workers 0 --data_dir packed --vqvae_path vqvae"]),
    "encode": ("latents", "--data_dir packed --vqvae_path vqvae --output_dir latents --num_workers 0",
               [f"train-ldm --data_dir packed --vqvae_path vqvae --latents_dir latents {LDM} --train_samples 8"]),
    "train-ldm": ("ldm", f"--data_dir packed --vqvae_path vqvae --latents_dir latents --output_dir ldm {LDM}",
                  [f"generate --ldm_path ldm {GENERATE}", "ema --run_dir ldm --reconstruct 0.07"]),
    "ema": ("averaged", "--run_dir ldm --reconstruct 0.07 --output_dir averaged",
            [f"generate --ldm_path averaged {GENERATE}"]),
    "generate": ("synthetic", f"--ldm_path ldm --output_dir synthetic {GENERATE} --grid --save_pipeline "
                 "--include_real packed --sift packed --sift_steps 2 --max_candidates 2 --format folder",
                 ["evaluate memorization --data_dir packed --synthetic_dir synthetic --image_size 16"]),
    "evaluate": ("evaluation", "--data_dir packed --synthetic_dir synthetic --vqvae_path vqvae "
                 f"--output_dir evaluation {EVALUATE}", []),
    "reconstruct": ("reconstruction", "--data_dir packed --vqvae_path vqvae --output_dir reconstruction", []),
    "augment": ("recipe", "--data_dir packed --output_dir recipe --image_size 16 --steps 1 --seeds 1 --folds 2 "
                "--n_per_class [2] --batch_size 8 --workers 1", []),
}  # fmt: skip


def write_inputs(root: Path) -> None:
    """Write a folder of toy images of two classes and one of recordings."""
    rng = np.random.default_rng(0)
    for label, name in ((1, "rising"), (3, "wavy")):
        for i in range(16):
            path = root / "images" / name / f"w_r{i % 4}_{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(toy_image(label, rng, 16)[:, :, 0]).save(path)
    for name, speed in (("near", 1.0), ("far", -2.0)):
        path = root / "recordings" / name / "a.npy"
        path.parent.mkdir(parents=True)
        phase = 4 * np.pi * speed * 5.8e9 / 3e8 * np.arange(2000) / 1000
        np.save(path, (np.exp(1j * phase) + 0.1 * rng.standard_normal(2000))[None])


def call(line: str) -> tuple[int, str, str]:
    """Run a command in this process; its status, 99 for a traceback, and what it printed."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = cli.main(line.split())
        except BaseException:
            status = 99
            print(traceback.format_exc(), file=err)
    return status, out.getvalue(), err.getvalue()


def build(root: Path) -> None:
    """Run every command once."""
    with _chdir(root):
        for command, (_, flags, _) in COMMANDS.items():
            status, out, err = call(f"{command} {flags}")
            assert status == 0, f"{command}: {out}{err}"


@contextlib.contextmanager
def _chdir(root: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(root)
    yield
    os.chdir(before)


def contents(folder: Path) -> dict[str, object]:
    """Path -> content of every file; of provenance what does not change with the time."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or path.name in TIMED or path.name.startswith(".listing"):
            continue
        data: object = path.read_bytes()
        if path.name == "provenance.json" and (record := provenance.load(path.parent)):
            data = [record[key] for key in ("kind", "hash", "made_from", "config")] + sorted(record["files"])
        found[str(path.relative_to(folder))] = data
    return found


DAMAGES: dict[str, Callable[[Path], object]] = {
    "removed": lambda path: path.unlink(),
    "emptied": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
}


def damages(folder: Path, together: bool = False) -> Iterator[tuple[list[str], str]]:
    """Damage every file of a folder in each way, or those of a sub-folder `together`, and put all back after each."""
    names = [str(path.relative_to(folder)) for path in sorted(folder.rglob("*")) if path.is_file()]
    groups: dict[str, list[str]] = {}
    for name in names:
        group = name.partition("/")[0] if "/" in name else "." if name[0] == "." else name
        group = ".png" if "/" not in name and name.endswith(".png") else group
        groups.setdefault(group if together else name, []).append(name)
    kept = folder.with_name(f"{folder.name}.kept")
    shutil.rmtree(kept, ignore_errors=True)
    shutil.copytree(folder, kept)
    for group in groups.values():
        for kind, damage in DAMAGES.items():
            for name in group:
                damage(folder / name)
            yield group, kind
            shutil.rmtree(folder)
            shutil.copytree(kept, folder)
    shutil.rmtree(kept)


def is_one_line_about(text: str, folder: str, damaged: list[str]) -> bool:
    """Whether an error is one line that names a damaged file or, of a shard or its sidecar, the shard."""
    names: list[str] = []
    for name in damaged:
        shard = Path(name).with_suffix(".tar")
        names += (f"{folder}/{name}", f" {name} ", f"{folder}/{shard}", f" {shard} ", f" {Path(name).name}")
    return len(text.strip().splitlines()) == 1 and "Traceback" not in text and any(each in text for each in names)


def changes(folder: Path) -> Iterator[tuple[list[str], str]]:
    """Turn a bit of two files of each kind in a folder, one after the other, and put all back after each."""
    kinds: dict[str, list[Path]] = {}
    for path in sorted(path for path in folder.rglob("[!.]*") if path.is_file()):
        is_sidecar = path.suffix == ".json" and path.with_suffix(".tar").is_file()
        if (
            path.stat().st_size
            and not is_sidecar
            and not {"checkpoints", "snapshots", "logs"} & set(path.parts)
            and path.name not in RECORDS
        ):
            kinds.setdefault(path.suffix, []).append(path)
    kept = folder.with_name(f"{folder.name}.kept")
    shutil.copytree(folder, kept)
    for path in [path for paths in kinds.values() for path in paths[:2]]:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        yield [str(path.relative_to(folder))], "changed"
        shutil.rmtree(folder)
        shutil.copytree(kept, folder)
    shutil.rmtree(kept)


def again(root: Path, command: str, verify: bool = False) -> list[str]:
    """What goes wrong when a command is given again after each damage of its folder."""
    wrong = []
    with _chdir(root):
        folder, flags, _ = COMMANDS[command]
        whole = contents(Path(folder))
        flags += " --verify" if verify else ""
        faults = changes(Path(folder)) if verify else damages(Path(folder), together=command in SLOW)
        for names, kind in faults:
            status, out, err = call(f"{command} {flags}")
            if status == 2 and is_one_line_about(err, folder, names):
                continue
            after = contents(Path(folder)) if status == 0 else {}
            differ = [each for each in whole.keys() | after.keys() if whole.get(each) != after.get(each)]
            named = set(differ) <= set(names) and any(
                f"{name} {verb} " in out for name in names for verb in ("is", "was")
            )
            if status == 0 and (named or not differ):
                continue
            wrong.append(f"{names} {kind}: status {status}, {differ[:3] if status == 0 else err[-1500:]}")
            output_folder.disown_all()
    return wrong


def afterwards(root: Path, command: str) -> list[str]:
    """What goes wrong in the commands that read its folder, after each damage."""
    wrong = []
    with _chdir(root):
        folder, _, readers = COMMANDS[command]
        for reader in readers:

            def read(reader: str = reader) -> tuple[int, str, str, dict[str, object]]:
                shutil.rmtree("next", ignore_errors=True)
                status, out, err = call(f"{reader} --output_dir next")
                return status, out, err, contents(Path("next")) if status == 0 else {}

            status, _, err, expected = read()
            assert status == 0, err
            for names, kind in damages(Path(folder), together=command in ("encode", "generate") or reader[:3] == "ema"):
                status, _, err, found = read()
                if status == 2 and is_one_line_about(err, folder, names):
                    continue
                differ = [
                    each
                    for each in expected.keys() | found.keys()
                    if expected.get(each) != found.get(each) and Path(each).name != "metrics.jsonl"
                ]
                if status != 0 or differ:
                    what = f"differs: {differ[:3]}" if status == 0 else err[-1500:]
                    wrong.append(f"{reader.split()[0]}, {names} {kind}: status {status}, {what}")
    return wrong


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("chain")
    write_inputs(folder)
    run_ranks(1, build, folder)
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_the_same_command_mends_its_folder_or_names_the_file(command, root):
    assert run_ranks(1, again, root, command) == [[]]


@pytest.mark.parametrize("command", [command for command in COMMANDS if command not in ANEW])
def test_with_verify_what_was_changed_is_made_again_or_named(command, root):
    assert run_ranks(1, again, root, command, True) == [[]]


@pytest.mark.parametrize("command", [command for command, (_, _, readers) in COMMANDS.items() if readers])
def test_the_next_command_names_the_file_or_does_not_need_it(command, root):
    assert run_ranks(1, afterwards, root, command) == [[]]


REFUSED = {
    "weights": f"train-vqvae --data_dir packed {VQVAE} --use_perceptual --perceptual_weights no.pt",
    "batches": f"train-vqvae --data_dir packed {VQVAE} --global_batch_size 12",
    "network": f"train-ldm --data_dir packed --vqvae_path vqvae --latents_dir latents {LDM} --norm_num_groups 5",
    "conditions": f"train-ldm --data_dir packed --vqvae_path vqvae --latents_dir latents {LDM} --condition_on [speed]",
    "groups": "pack --data_dir images --workers 1 --group_by _(nowhere)_",
    "classes": "generate --ldm_path ldm --per_class nobody=3",
    "real images": f"evaluate --data_dir packed --synthetic_dir packed {EVALUATE}",
}


def refuse(root: Path) -> list[str]:
    """The commands that were not refused in words, or have claimed their folder."""
    with _chdir(root):
        wrong = []
        for what, line in REFUSED.items():
            status, _, err = call(f"{line} --output_dir refused")
            if status != 2 or "Traceback" in err or Path("refused/run.json").exists():
                wrong.append(f"{what}: {status}, {err[-1500:]}")
            shutil.rmtree("refused", ignore_errors=True)
        return wrong


def test_what_is_refused_has_not_claimed_its_folder(root):
    assert run_ranks(1, refuse, root) == [[]]


def attempt(folder: Path) -> str:
    from mdaug import distributed
    from mdaug.training.run_folder import claim_on_all_ranks

    distributed.init()
    with pytest.raises(UserError) as refused:
        claim_on_all_ranks(folder, "train-vqvae", {}, {})
    return str(refused.value)


def test_all_ranks_are_refused_while_another_process_owns_the_folder(tmp_path):
    claim(tmp_path, "train-vqvae", {})
    (line,) = set(run_ranks(2, attempt, tmp_path))
    assert f"is being written by mdaug train-vqvae, process {os.getpid()} on " in line


def verified(root: Path) -> list[str]:
    """What mdaug verify says of every folder, and of files with one other bit."""
    wrong = []
    with _chdir(root):
        for folder in ("pictures", "packed", "vqvae", "latents", "ldm", "averaged", "synthetic", "evaluation"):
            if (said := call(f"verify {folder}"))[0] != 0:
                wrong.append(f"{folder}: {said}")
            paths = [path for path in Path(folder).rglob("*.*") if path.suffix in (".png", ".safetensors", ".tar")]
            for path in [path for path in sorted(paths)[:2] if "checkpoints" not in path.parts]:
                data = bytearray(path.read_bytes())
                data[len(data) // 2] ^= 1
                path.write_bytes(data)
                status, out, err = call(f"verify {folder}")
                if status != 2 or str(path) not in out or len(err.splitlines()) != 1:
                    wrong.append(f"{path}: {status}, {out}{err}")
                data[len(data) // 2] ^= 1
                path.write_bytes(data)
    return wrong


def test_verify_compares_hashes(root):
    assert run_ranks(1, verified, root) == [[]]
