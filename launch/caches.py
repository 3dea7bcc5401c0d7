"""Cache folders for machines whose home cannot be written to."""

from __future__ import annotations

import contextlib
import os
import platform
import tempfile
from pathlib import Path

import psutil

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
    """Move caches to where they can be written, and clear what killed processes have left in them."""
    _move()
    extensions = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or "~/.cache/torch_extensions").expanduser()
    if extensions.name != platform.node():  # a folder for each machine: only here can be seen who still compiles
        extensions /= platform.node()
    os.environ["TORCH_EXTENSIONS_DIR"] = str(extensions)
    clear_locks(extensions)


def clear_locks(extensions: Path) -> None:
    """Remove locks of torch's run-time compiler that no process holds; whoever met one would wait for ever.

    Who compiles keeps its lock open (torch.utils.file_baton), so that a lock nobody has open was left by the killed.
    """
    locks = {str(path.resolve()) for path in extensions.glob("**/lock")}
    for path in sorted(locks - _open_files() if locks else ()):
        Path(path).unlink(missing_ok=True)
        print(f"launch: removed {path}, left by a process that was killed while it compiled", flush=True)


def _open_files() -> set[str]:
    """Return the files that processes of this user have open."""
    found: set[str] = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            found |= {file.path for file in process.open_files()}
    return found


def _move() -> None:
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
