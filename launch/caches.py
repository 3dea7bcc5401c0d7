"""Cache folders for machines whose home cannot be written to."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

# Libraries that write below the home folder when imported or used, and the variable that moves each.
CACHES = {
    "TRITON_CACHE_DIR": "triton",
    "TORCH_EXTENSIONS_DIR": "torch_extensions",
    "HF_MODULES_CACHE": "huggingface_modules",
    "MPLCONFIGDIR": "matplotlib",
    "WANDB_CACHE_DIR": "wandb",
    "WANDB_CONFIG_DIR": "wandb",
    "WANDB_DATA_DIR": "wandb",
}


def prepare() -> None:
    """Move caches to a temporary folder if the home folder cannot be written to; reading from home still works."""
    if _can_write(Path(os.path.expanduser("~")) / ".cache"):
        return
    folder = Path(tempfile.gettempdir()) / f"mdaug-cache-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():  # compiled code is loaded from here: nobody else may have put it there
        folder = Path(tempfile.mkdtemp(prefix="mdaug-cache-"))
    for variable, name in CACHES.items():
        os.environ.setdefault(variable, str(folder / name))


def _can_write(folder: Path) -> bool:
    """Return whether files can be written to `folder`, made now if only it is absent."""
    try:
        folder.mkdir(exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False
