"""mdaug: labelled synthetic micro-Doppler spectrograms."""

from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import the pipeline on first use: `from mdaug import MicroDopplerPipeline` without slowing `mdaug --help`."""
    if name == "MicroDopplerPipeline":
        from mdaug.pipeline.pipeline import MicroDopplerPipeline

        return MicroDopplerPipeline
    raise AttributeError(f"module 'mdaug' has no attribute '{name}'")
