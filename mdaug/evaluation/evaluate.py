"""`mdaug evaluate`: what the synthetic images are worth, in numbers, pictures and three sentences."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from mdaug import distributed
from mdaug.config import as_dict, dump
from mdaug.evaluation import measure
from mdaug.evaluation.inputs import check_inputs, held_out, load_like, measurable_parts, policy_of
from mdaug.evaluation.measure import EvaluationInputs
from mdaug.evaluation.options import ALL, EvaluateConfig, Part
from mdaug.evaluation.report import page, pictures
from mdaug.evaluation.report.verdict import targets, verdict
from mdaug.measures import auxiliary, image_set
from shards import atomic, provenance
from shards.errors import UserError
from shards.output_folder import OutputFolder, claim, exclusive, is_finished, list_lost, refuse_other
from shards.validation import Preflight, identity_of

PARTS = "parts"  # folder of one JSON per part, and of the commands that measured them
COMMANDS = "commands.json"


def check(options: EvaluateConfig, where: Preflight) -> None:
    """Raise UserError where output_dir holds something else, or inputs that are there do not belong together."""
    made_from = check_inputs(options) if where.inputs_there else {}
    refuse_other(options.output_dir, "evaluate", identity_of(options), made_from)


def run(options: EvaluateConfig) -> dict | None:
    """Run what is not done yet of an evaluation, write its report, print the summary and return the metrics.

    Of several ranks all but the one that writes the report return None.

    Raises:
        UserError: the inputs do not belong together (see `check_inputs`), or the output folder holds something else.
    """
    made_from = check_inputs(options)
    parts = measurable_parts(options)
    folder = claim(options.output_dir, "evaluate", identity_of(options), made_from, together=True)
    if folder.lost:
        parts = _begin_again(folder, parts, options)
    if folder.finished and not _missing(folder, parts):
        print(f"{folder.path} holds this evaluation already, finished; delete the folder to run it again.")
        metrics = json.loads((folder.path / page.METRICS).read_text(encoding="utf-8"))
    else:
        print(dump(options), end="")
        folder.begin_again()
        (folder.path / PARTS).mkdir(exist_ok=True)
        inputs = _load(options, folder)
        metrics = None
        if measure.share(inputs, _missing(folder, parts)):
            # Ranks that end in the same moment all find the work done. One of them writes the report; the others wait,
            # and write it in its place if it dies.
            with exclusive(folder.path):
                if not (is_finished(folder.path) and not _missing(folder, parts)):
                    metrics = _write(inputs, parts)
        if metrics is None:
            print("this rank is done; the last rank to finish writes the report", flush=True)
            return None
    print(page.summary(metrics, folder.path))
    return metrics


def _load(options: EvaluateConfig, folder: OutputFolder) -> EvaluationInputs:
    """Read all images into memory."""
    distributed.device()  # "cuda" is the GPU of this rank from here on

    def load(path: Path) -> image_set.ImageSet:
        return image_set.load(path, image_size=options.image_size, max_per_class=options.max_per_class)

    train, judge = load(options.data_dir / "train"), load(held_out(options.data_dir))
    others = None
    if options.aux_dir is not None:
        others = auxiliary.load(
            options.aux_dir,
            options.data_dir,
            {"training": train, "held-out": judge},
            same_names=options.same_names,
            image_size=options.image_size,
            max_per_class=options.max_per_class,
        )
    return EvaluationInputs(
        options=options,
        folder=folder,
        train=train,
        held_out=judge,
        synthetic=load(options.synthetic_dir),
        simulated=load(options.simulated_dir / "train") if options.simulated_dir is not None else None,
        auxiliary=others,
        like=load_like(options, train),
    )


def _write(inputs: EvaluationInputs, parts: tuple[Part, ...]) -> dict:
    """Measure the parts that are missing, and write the report of all parts that were ever measured here."""
    options, folder = inputs.options, inputs.folder
    folder.begin_again()
    missing = _missing(folder, parts)
    # The command of each part, before its figures, so that none is without.
    file = folder.path / PARTS / COMMANDS
    commands = _commands(folder)
    commands |= dict.fromkeys(missing, page.command(as_dict(options)))
    atomic.write_text(file, json.dumps(commands) + "\n")
    # The figures. A part that fails costs one line of the report; the same command tries it again.
    failed: dict[str, str] = {}
    for done, part in enumerate(missing, start=1):
        try:
            atomic.write_text(_file(folder, part), json.dumps(measure.MEASURE[part](inputs)) + "\n")
        except (UserError, OSError):
            raise
        except Exception as error:  # whatever the user's metadata or images do to a measure
            if part in ("usefulness", options.part):
                raise
            failed[part] = f"{type(error).__name__}: {error}"
        folder.progress(done, len(missing), "part")
    metrics: dict[str, Any] = {"data": _data(inputs), "config": as_dict(options), "commands": commands}
    metrics["failed"] = failed
    for part in ALL:
        file = _file(folder, part)
        metrics[part] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
    metrics = {"verdict": verdict(metrics), "targets": targets(metrics), **metrics}
    # The report, and last the mark of the end.
    pictures.save(folder.path / pictures.GRID, pictures.real_and_synthetic(inputs.held_out, inputs.synthetic))
    page.write(folder.path, metrics)
    folder.finish("evaluation", provenance.hash_files([folder.path / page.METRICS]), as_dict(options))
    return metrics


def _data(inputs: EvaluationInputs) -> dict[str, Any]:
    """Return what was measured on: classes, shapes, images of each class and set, hashes."""
    train, held_out_set, synthetic = inputs.train, inputs.held_out, inputs.synthetic
    return {
        "classes": train.dataset.classes,
        "image_shape": list(train.original(0).shape),
        "train": train.counts(),
        "held_out": held_out_set.counts(),
        "held_out_split": held_out(inputs.options.data_dir).name,
        "held_out_groups": len(set(held_out_set.groups)),
        "synthetic": synthetic.counts(),
        "simulated": inputs.simulated and inputs.simulated.counts(),
        "auxiliary": inputs.auxiliary and dict(zip(inputs.auxiliary.classes, inputs.auxiliary.counts(), strict=True)),
        "like_with_like": [[number, subset, len(images)] for (number, subset), images in inputs.like.items()],
        "policy": policy_of(inputs.options.policy).to_json(),
        "in_folders": [images.available for images in (train, held_out_set, synthetic)],
        "made_from": {role: content for role, content in inputs.folder.made_from.items() if content is not None},
    }


def _begin_again(folder: OutputFolder, parts: tuple[Part, ...], options: EvaluateConfig) -> tuple[Part, ...]:
    """Forget the parts whose files a finished evaluation has lost; return those to measure, with the ones asked for.

    Raises UserError where that takes an input that was not named.
    """
    lost = {Path(name).parts[0] for name, _ in folder.lost} | {name for name, _ in folder.lost}
    again = [
        part
        for part in ALL
        if f"{PARTS}/{part}.json" in lost or (_file(folder, part).is_file() and lost & set(measure.FILES[part]))
    ]
    if "reconstruction" in again and options.vqvae_path is None:
        raise UserError(
            f"{folder.path}: {list_lost(folder.lost)}; name the VQ-VAE with --vqvae_path to make that again"
        )
    with exclusive(folder.path):
        if is_finished(folder.path):  # else another rank was here
            commands = _commands(folder)
            for part in again:
                _file(folder, part).unlink(missing_ok=True)
            folder.begin_again()
            (folder.path / PARTS).mkdir(exist_ok=True)
            atomic.write_text(folder.path / PARTS / COMMANDS, json.dumps(commands) + "\n")
    folder.lost = []
    return tuple(part for part in ALL if part in (*parts, *again))


def _commands(folder: OutputFolder) -> dict[str, str]:
    """Return the command that measured each part: as it was kept, or as the report has it."""
    if f"{PARTS}/{COMMANDS}" not in {name for name, _ in folder.lost}:
        with contextlib.suppress(FileNotFoundError, ValueError):
            return json.loads((folder.path / PARTS / COMMANDS).read_text(encoding="utf-8"))
    with contextlib.suppress(FileNotFoundError, ValueError):
        return json.loads((folder.path / page.METRICS).read_text(encoding="utf-8"))["commands"]
    return {}


def _missing(folder: OutputFolder, parts: tuple[Part, ...]) -> list[Part]:
    return [part for part in parts if not _file(folder, part).is_file()]


def _file(folder: OutputFolder, part: Part) -> Path:
    return folder.path / PARTS / f"{part}.json"
