"""The command line: `mdaug <command> [--config FILE.yaml] [--field value ...]`.

Each command is a dataclass and a function named in COMMANDS. Nothing heavy (torch, diffusers,
deepspeed) is imported before a command runs, so `mdaug --help` answers at once.
"""

from __future__ import annotations

import importlib
import sys

from shards.errors import UserError

# command: (module, configuration dataclass, function that runs it, one line of help)
COMMANDS = {
    "simulate": ("mdaug.radar.simulate", "SimulateConfig", "simulate", "make a labelled image folder from physics"),
    "spectrogram": (
        "mdaug.radar.spectrogram",
        "SpectrogramConfig",
        "spectrogram",
        "recordings -> labelled image folder",
    ),
    "pack": ("shards.pack", "PackConfig", "pack", "image folder -> tar shards + index, split by group"),
    "train-vqvae": ("mdaug.training.train_vqvae", "VQVAEConfig", "train_vqvae", "train the VQ-VAE on packed images"),
    "reconstruct": (
        "mdaug.evaluation.reconstruct",
        "ReconstructConfig",
        "reconstruct",
        "measure the VQ-VAE on held-out images",
    ),
    "encode": ("mdaug.training.encode", "EncodeConfig", "encode", "packed images -> latent shards + mean/std"),
    "train-ldm": ("mdaug.training.train_ldm", "LDMConfig", "train_ldm", "train the latent diffusion model"),
    "ema": ("mdaug.training.ema_snapshots", "EmaConfig", "reconstruct_ema", "averaged model of another length"),
    "generate": ("mdaug.generation.generate", "GenerateConfig", "generate", "write labelled synthetic tar shards"),
    "evaluate": ("mdaug.evaluation.evaluate", "EvaluateConfig", "evaluate", "fidelity and usefulness, with a report"),
}

# Fields of a command's configuration that must exist when it starts (those that are optional: where they are given).
INPUTS = {
    "spectrogram": ("data_dir",),
    "pack": ("data_dir",),
    "train-vqvae": ("data_dir", "deepspeed_config", "perceptual_weights"),
    "encode": ("data_dir", "vqvae_path"),
    "reconstruct": ("data_dir", "vqvae_path", "perceptual_weights"),
    "train-ldm": ("data_dir", "vqvae_path", "deepspeed_config"),
    "ema": ("run_dir",),
    "generate": ("ldm_path", "vqvae_path", "balance_to", "include_real", "sift"),
    "evaluate": ("data_dir", "synthetic_dir", "vqvae_path", "simulated_dir"),
}

NO_MEMORY = ("out of memory", "can't allocate memory")  # in torch's errors, of a GPU and of a CPU


def load(command: str):
    """Return (configuration class, function) of a command, importing its module now."""
    if command not in COMMANDS:
        raise UserError(f"mdaug: unknown command '{command}'; the commands are {', '.join(COMMANDS)}")
    module_name, config_name, function_name, _ = COMMANDS[command]
    module = importlib.import_module(module_name)
    return getattr(module, config_name), getattr(module, function_name)


def run(argv: list[str]) -> None:
    """Parse and run one command; mistakes of the user, and too small a disk or memory, arrive as UserError."""
    from mdaug import config
    from shards.writer import one_line_for_a_full_disk, require_writable

    config_class, function = load(argv[0])
    parsed = config.parse(config_class, argv[1:], prog=f"mdaug {argv[0]}")
    output = next(filter(None, (getattr(parsed, name, None) for name in ("output_dir", "run_dir", "vqvae_path"))))
    try:
        with one_line_for_a_full_disk(output):
            function(parsed)
    except OSError:
        require_writable(output)  # if that is the reason, it is a line; a finished folder may well be read-only
        raise
    except (MemoryError, RuntimeError) as error:
        said = " ".join(str(error).split())
        if not isinstance(error, MemoryError) and not any(words in said for words in NO_MEMORY):
            raise
        raise UserError(
            f"out of memory ({said[:160]}); a smaller --batch_size needs less, and in a training "
            "--gradient_accumulation_steps makes up for it"
        ) from None


def main(argv: list[str] | None = None) -> int:
    """Entry point of the `mdaug` script. Returns the exit status: 0 done, 2 a mistake of the user."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: mdaug <command> [--config FILE.yaml] [--field value ...]\n")
        for command, (*_, text) in COMMANDS.items():
            print(f"  {command:12s} {text}")
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
