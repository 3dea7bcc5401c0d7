"""The chain of stages, once: the folder of each below one output folder, and the presets.

images -> packed -> vqvae -> latents -> ldm -> synthetic -> evaluation
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from shards.errors import UserError

CHAIN = ("simulate", "pack", "train-vqvae", "encode", "train-ldm", "generate", "evaluate")


def folders(command: str, out: Path, data: Path | None = None) -> dict[str, Path]:
    """Return field -> folder of a stage.

    Args:
        command: the stage.
        out: folder of all stages.
        data: image folder of the user; default: `out/images`.

    Raises:
        UserError: a command that is not a stage.
    """
    images, packed, vqvae, ldm = data or out / "images", out / "packed", out / "vqvae", out / "ldm"
    latents, synthetic = out / "latents", out / "synthetic"
    stages = {
        "simulate": {"output_dir": images},
        "spectrogram": {"output_dir": images},
        "pack": {"data_dir": images, "output_dir": packed},
        "train-vqvae": {"data_dir": packed, "output_dir": vqvae},
        "reconstruct": {"data_dir": packed, "vqvae_path": vqvae},
        "encode": {"data_dir": packed, "vqvae_path": vqvae, "output_dir": latents},
        "train-ldm": {"data_dir": packed, "vqvae_path": vqvae, "latents_dir": latents, "output_dir": ldm},
        "distil": {
            "data_dir": packed, "vqvae_path": vqvae, "latents_dir": latents, "ldm_path": ldm,
            "output_dir": out / "distilled",
        },
        "ema": {"run_dir": ldm},
        "generate": {"ldm_path": ldm, "output_dir": synthetic},
        "evaluate": {
            "data_dir": packed, "synthetic_dir": synthetic, "vqvae_path": vqvae, "output_dir": out / "evaluation",
        },
        "augment": {"data_dir": data or packed, "output_dir": out / "recipe"},
    }  # fmt: skip
    if command not in stages:
        raise UserError(f"{command} is not a stage with a folder below --out; the stages are {', '.join(stages)}")
    return stages[command]


def flags(command: str, out: Path | None = None, data: Path | None = None, preset: str | None = None) -> list[str]:
    """Return the flags that give a stage its preset and its folders, as far as they are named."""
    chosen = [] if preset is None else ["--config", preset]
    if out is not None:
        chosen += [word for name, folder in folders(command, out, data).items() for word in (f"--{name}", str(folder))]
    if preset is not None and command == "reconstruct":
        chosen += ["--preset", preset]  # the title of its table
    return chosen


@dataclass
class ChainConfig:
    """Run simulate, pack, train-vqvae, encode, train-ldm, generate and evaluate."""

    out: Path = Path("runs/demo")
    """Folder for the result of every stage; finished stages are skipped when the command is given again."""
    data: Path | None = None
    """Image folder `<class>/*.png` to use instead of the built-in simulator."""
    group_by: str | None = None
    """Passed to `mdaug pack`: what must not be torn between training and validation."""
    aux: Path | None = None
    """Passed to both trainings as `--aux_dir`: images of other persons or sites, packed or an image folder."""
    preset: str = "demo"
    """Preset: its name, or a YAML file like those in configs/."""

    def __post_init__(self) -> None:
        """Refuse what does not exist; raises ValueError naming field, value and what is accepted."""
        if self.data is not None and not self.data.is_dir():
            raise ValueError(f"data={self.data} is not a folder; give an image folder <class>/*.png")
        if self.aux is not None and not self.aux.is_dir():
            raise ValueError(f"aux={self.aux} is not a folder; give packed images or an image folder <class>/*.png")

    def stages(self) -> dict[str, tuple[list[str], list[str]]]:
        """Return command -> (flags of the launcher, flags of the command) of the stages to run, in their order."""
        data = ["--data", str(self.data)] if self.data is not None else []
        aux = ["--aux_dir", str(self.aux)] if self.aux is not None else []
        group_by = ["--group_by", self.group_by] if self.group_by is not None else []
        flags = {"pack": group_by, "train-vqvae": aux, "train-ldm": aux}
        chain = [command for command in CHAIN if command != "simulate" or self.data is None]
        launcher_flags = ["--out", str(self.out), "--preset", self.preset, *data]
        return {command: (launcher_flags, flags.get(command, [])) for command in chain}
