"""The command line: `mdaug <command> [--config FILE] [--field value ...]`, and the one table of all commands.

`mdaug --help` and `mdaug <command> --help` import the options alone; torch, diffusers and deepspeed come with the
command itself.
"""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from shards.errors import UserError

NO_MEMORY = ("out of memory", "can't allocate memory")  # in torch's errors, of a GPU and of a CPU


@dataclass(frozen=True)
class Command:
    """What is known of a command before any of its code is imported.

    Attributes:
        options: "module:class" of its options, a dataclass.
        module: the module of its `run(options)` and, if it writes a folder, its `check(options, where: Preflight)`.
        help: one line.
        inputs: options that name a folder or file, which must exist when the command starts (if the option is given).
        given: those of them that no other command makes, so that they exist before any command has run.
        parallel: whether several ranks share the work; else it runs in one process.
        array: whether its ranks need not run at the same time, nor know of each other.
        images: whether `data_dir` is packed shards or an image folder.
    """

    options: str
    module: str
    help: str
    inputs: tuple[str, ...] = ()
    given: tuple[str, ...] = ()
    parallel: bool = False
    array: bool = False
    images: bool = True

    def load_options(self) -> type:
        """Import and return the options class."""
        module, _, name = self.options.partition(":")
        return getattr(importlib.import_module(module), name)

    def load(self) -> ModuleType:
        """Import and return the module with `run` and `check`."""
        return importlib.import_module(self.module)


COMMANDS = {
    "simulate": Command(
        "mdaug.radar.options:SimulateConfig",
        "mdaug.radar.simulate",
        "make a labelled image folder from physics",
    ),
    "spectrogram": Command(
        "mdaug.radar.options:SpectrogramConfig",
        "mdaug.radar.spectrogram",
        "raw radar recordings -> labelled image folder",
        inputs=("data_dir",),
        images=False,
    ),
    "pack": Command(
        "shards.options:PackConfig",
        "shards.pack",
        "image folder -> tar shards + index, split by group",
        inputs=("data_dir",),
    ),
    "train-vqvae": Command(
        "mdaug.training.options:VQVAEConfig",
        "mdaug.training.train_vqvae",
        "train the VQ-VAE on packed images",
        inputs=("data_dir", "deepspeed_config", "perceptual_weights"),
        given=("deepspeed_config", "perceptual_weights"),
        parallel=True,
    ),
    "reconstruct": Command(
        "mdaug.evaluation.options:ReconstructConfig",
        "mdaug.evaluation.reconstruct",
        "measure what the VQ-VAE keeps of held-out images",
        inputs=("data_dir", "vqvae_path", "perceptual_weights"),
        given=("perceptual_weights",),
    ),
    "encode": Command(
        "mdaug.training.options:EncodeConfig",
        "mdaug.training.encode",
        "packed images -> latent shards with their mean and std",
        inputs=("data_dir", "vqvae_path"),
        parallel=True,
    ),
    "train-ldm": Command(
        "mdaug.training.options:LDMConfig",
        "mdaug.training.train_ldm",
        "train the latent diffusion model",
        inputs=("data_dir", "vqvae_path", "deepspeed_config"),
        given=("deepspeed_config",),
        parallel=True,
    ),
    "ema": Command(
        "mdaug.training.options:EmaConfig",
        "mdaug.training.ema_snapshots",
        "averaged diffusion model of another length, after the training",
        inputs=("run_dir",),
    ),
    "generate": Command(
        "mdaug.generation.options:GenerateConfig",
        "mdaug.generation.generate",
        "write labelled synthetic tar shards",
        inputs=("ldm_path", "vqvae_path", "balance_to", "include_real", "sift"),
        parallel=True,
        array=True,
    ),
    "evaluate": Command(
        "mdaug.evaluation.options:EvaluateConfig",
        "mdaug.evaluation.evaluate",
        "fidelity and usefulness, with a report",
        inputs=("data_dir", "synthetic_dir", "vqvae_path", "simulated_dir"),
        parallel=True,
        array=True,
    ),
    "estimate": Command(
        "mdaug.training.options:EstimateConfig",
        "mdaug.training.estimate",
        "memory, hours and GPU-hours of a training, before it is queued",
    ),
    "verify": Command(
        "shards.options:VerifyConfig",
        "shards.verify",
        "compare a finished folder with what was written, by hashes",
        inputs=("folder",),
    ),
    "weights": Command(
        "mdaug.models.options:WeightsConfig",
        "mdaug.models.perceptual",
        "fetch the weights of the perceptual loss (needs a network)",
    ),
}


def find(name: str) -> Command:
    """Return a command by its name; raises UserError for one that does not exist."""
    if name not in COMMANDS:
        raise UserError(f"mdaug: unknown command '{name}'; the commands are {', '.join(COMMANDS)}")
    return COMMANDS[name]


def parse(name: str, argv: list[str]) -> Any:
    """Return the options of a command from its flags; raises UserError for a mistake in them."""
    from mdaug import config

    sections = {each: command.load_options for each, command in COMMANDS.items()}
    return config.parse(find(name).load_options(), argv, f"mdaug {name}", section=name, sections=sections)


def run(argv: list[str]) -> None:
    """Parse and run one command; the user's mistakes, a full disk and too little memory arrive as UserError."""
    start(argv[0], parse(argv[0], argv[1:]))


def start(name: str, options: Any) -> None:
    """Run a command with its options; raises UserError as `run` does."""
    from shards.output_folder import disown_all
    from shards.writer import disk_full_as_user_error, require_writable

    output = getattr(options, "output_dir", Path.cwd())  # a command without one writes no folder
    try:
        with disk_full_as_user_error(output):
            find(name).load().run(options)
    except OSError:
        require_writable(output)  # says so in one line, if that is the reason; a finished folder may be read-only
        raise
    except (MemoryError, RuntimeError) as error:
        text = " ".join(str(error).split())
        if not isinstance(error, MemoryError) and not any(words in text for words in NO_MEMORY):
            raise
        raise UserError(
            f"out of memory ({text[:160]}); a smaller --batch_size needs less, and in a training "
            "--gradient_accumulation_steps makes up for it"
        ) from None
    finally:
        disown_all()


def main(argv: list[str] | None = None) -> int:
    """Entry point of the `mdaug` script. Returns the exit status: 0 done, 2 a mistake of the user."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: mdaug <command> [--config FILE] [--field value ...]\n")
        for name, command in COMMANDS.items():
            print(f"  {name:12s} {command.help}")
        print("\n'mdaug <command> --help' lists the fields of a command.")
        return 0
    if argv[0] == "--version":
        from mdaug import __version__

        print(f"mdaug {__version__}")
        return 0
    try:
        run(argv)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
