"""`mdaug evaluate`: what the synthetic images are worth, in numbers, pictures and three sentences."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mdaug.config import as_dict
from mdaug.evaluation import inputs as folders
from mdaug.evaluation.inputs import PARTS, RESULTS
from mdaug.evaluation.options import ALL, EvaluateConfig, Part
from shards import atomic, provenance
from shards.errors import UserError
from shards.index import read_index
from shards.validation import Preflight

if TYPE_CHECKING:
    from mdaug.evaluation import measure as parts

COMMANDS = "commands.json"
LOCK = ".lock"  # of the rank that writes the report


def check(options: EvaluateConfig, where: Preflight) -> None:
    """Raise UserError where output_dir holds something else, or inputs that are there do not belong together."""
    made_from = folders.check_origin(options) if where.inputs_there else {}
    if where.inputs_there:
        folders.check_alike(options)
        _measurable(options)
        folders.held_out(options.data_dir)
        if options.classifier != "small":
            from mdaug.measures.classifier import build

            train = read_index(options.data_dir / "train")
            build(options.classifier, train["image_shape"][2], len(train["classes"]), options.image_size)
    folders.refuse_others(options, made_from)


def run(config: EvaluateConfig) -> dict | None:
    """Run what is not done yet of an evaluation, write its report, print the summary and return the metrics.

    Of several ranks all but the last to finish return None.

    Raises:
        UserError: the synthetic images or the VQ-VAE do not come from data_dir, classes or shapes differ, a split is
            missing, or the output folder holds something else.
    """
    from mdaug.evaluation.report import page as report

    made_from = folders.check_origin(config)
    folders.check_alike(config)
    wanted = _measurable(config)
    folders.claim(config, made_from)
    files = {part: config.output_dir / PARTS / f"{part}.json" for part in ALL}
    if _finished(config, files, wanted):
        print(f"{config.output_dir} holds this evaluation already, finished; delete the folder to run it again.")
        metrics = json.loads((config.output_dir / report.METRICS).read_text(encoding="utf-8"))
    else:
        done = _measure(config, made_from, files, wanted)
        if done is None:
            print("this rank is done; the last rank to finish writes the report", flush=True)
            return None
        metrics = done
    print(report.summary(metrics, config.output_dir))
    return metrics


def _finished(config: EvaluateConfig, files: dict[Part, Path], wanted: tuple[Part, ...]) -> bool:
    record = config.output_dir / provenance.FILE_NAME
    return record.is_file() and all(files[part].is_file() for part in wanted)


def _measure(
    config: EvaluateConfig, made_from: dict[str, str], files: dict[Part, Path], wanted: tuple[Part, ...]
) -> dict | None:
    """Do this rank's share, and if it ends last the rest too; return the metrics, or None where another rank does.

    Ranks that end in the same moment both find all shares done. One of them writes; the other waits, goes on in its
    place should it die, and otherwise finds the report.
    """
    from mdaug import distributed
    from mdaug.evaluation import measure as parts
    from mdaug.measures import image_set

    distributed.device()  # "cuda" is the GPU of this rank from here on
    places: dict[str, Path | None] = {
        "train": config.data_dir / "train",
        "held_out": folders.held_out(config.data_dir),
        "synthetic": config.synthetic_dir,
        "simulated": config.simulated_dir and config.simulated_dir / "train",
    }
    sets = {
        name: folder and image_set.load(folder, image_size=config.image_size, max_per_class=config.max_per_class)
        for name, folder in places.items()
    }
    inputs = parts.Inputs(config=config, results=config.output_dir / RESULTS, **sets)  # type: ignore[arg-type]
    missing = [part for part in wanted if not files[part].is_file()]
    if not parts.share(inputs, missing):
        return None
    with atomic.locked(config.output_dir / LOCK):
        return None if _finished(config, files, wanted) else _write(inputs, made_from, files, wanted)


def _write(inputs: parts.Inputs, made_from: dict[str, str], files: dict[Part, Path], wanted: tuple[Part, ...]) -> dict:
    """Measure the parts that are wanted and not there yet, and write the report of all that are there."""
    from mdaug.evaluation import measure as parts
    from mdaug.evaluation.report import page as report
    from mdaug.evaluation.report import pictures
    from mdaug.evaluation.report.verdict import targets, verdict

    config = inputs.config
    (config.output_dir / provenance.FILE_NAME).unlink(missing_ok=True)
    missing = [part for part in wanted if not files[part].is_file()]
    # Before the parts, so that none is without its command.
    recorded = config.output_dir / PARTS / COMMANDS
    commands = json.loads(recorded.read_text(encoding="utf-8")) if recorded.is_file() else {}
    commands |= dict.fromkeys(missing, report.command(as_dict(config)))
    atomic.write_text(recorded, json.dumps(commands) + "\n")
    for part in missing:
        atomic.write_text(files[part], json.dumps(getattr(parts, part)(inputs)) + "\n")
    train, held_out, synthetic = inputs.train, inputs.held_out, inputs.synthetic
    metrics: dict[str, Any] = {
        "data": {
            "classes": train.dataset.classes,
            "image_shape": list(train.original(0).shape),
            "train": train.counts(),
            "held_out": held_out.counts(),
            "held_out_split": folders.held_out(config.data_dir).name,
            "held_out_groups": len(set(held_out.groups)),
            "synthetic": synthetic.counts(),
            "simulated": inputs.simulated and inputs.simulated.counts(),
            "in_folders": [len(images.dataset) for images in (train, held_out, synthetic)],
            "made_from": made_from,
        },
        "config": as_dict(config),
        "commands": commands,
        **{
            part: json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
            for part, file in files.items()
        },
    }
    metrics = {"verdict": verdict(metrics), "targets": targets(metrics), **metrics}
    pictures.save(config.output_dir / report.GRID, pictures.real_and_synthetic(held_out, synthetic))
    report.write(config.output_dir, metrics)
    provenance.write(
        config.output_dir,
        kind="evaluation",
        content_hash=provenance.hash_files([config.output_dir / report.METRICS]),
        made_from=made_from,
        config=as_dict(config),
    )
    return metrics


def _measurable(config: EvaluateConfig) -> tuple[Part, ...]:
    """Return the wanted parts that the images allow; UserError where none is left."""
    classes = read_index(config.data_dir / "train")["classes"]
    if len(classes) > 1:
        return config.wanted
    if config.part == "usefulness":
        raise UserError(
            f"{config.data_dir} has one class only ('{classes[0]}'), and a classifier has nothing to tell apart; "
            "measure something else: mdaug evaluate, or evaluate fidelity, kinematics or memorization"
        )
    return tuple(part for part in config.wanted if part != "usefulness")
