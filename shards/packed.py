"""Open the images of a command: a packed folder, or an image folder that is packed once into a cache."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from shlex import quote
from typing import Any

from shards import pack, provenance
from shards.errors import UserError
from shards.index import FILE_NAME as INDEX
from shards.index import read_index
from shards.options import PackConfig
from shards.output_folder import RUN_FILE
from shards.remote import fetch, url_of
from shards.source import read_folder
from shards.validation import height_width, identity_of, written
from shards.writer import why_not_writable


def open_packed(data_dir: Path, image_size: int | str, cache_dir: Path | None = None, **options: Any) -> Path:
    """Return a packed folder of images of `image_size`: `data_dir` itself, or what an image folder is packed into.

    An image folder is packed once into `cache_dir` (default: the folder `.mdaug-cache` beside it), under a name that
    changes with the files and the options. Any number of ranks may call this at once: one packs, the others wait.

    Args:
        data_dir: a packed folder, an image folder, or the URL of a packed folder (`s3://...`, see shards/remote.py).
        image_size: what the caller needs: pixels of a square, or height x width such as "128x256".
        cache_dir: where packed image folders, or copies of remote ones, are kept.
        options: further fields of PackConfig.

    Raises:
        UserError: packed images of another size, an unfinished packing, or what `pack` refuses.
    """
    url = url_of(data_dir)
    data_dir = fetch(url, cache_dir) if url else Path(data_dir)
    if packed_hash(data_dir, image_size, cache_dir, **options) is not None:
        return data_dir
    folder = read_folder(data_dir)
    cache_dir = cache_dir or _beside(data_dir)
    config = PackConfig(data_dir, cache_dir, image_size=image_size, **options)
    name = hashlib.sha256(json.dumps([folder.listing, identity_of(config)]).encode()).hexdigest()[:16]
    config.output_dir = cache_dir / name
    pack.run(config)
    return config.output_dir


def require_images(data_dir: Path) -> None:
    """Raise UserError for a local folder that is neither packed nor an image folder; opens no image."""
    if not is_packed(data_dir):
        read_folder(data_dir)


def packed_hash(data_dir: Path, image_size: int | str, cache_dir: Path | None = None, **options: Any) -> str | None:
    """Return the content hash of a packed folder, or None for an image folder or a URL; reads and packs no image.

    Raises UserError as `open_packed` does for a packed folder that does not fit, and for an image folder beside which
    nothing can be written.
    """
    if not is_packed(data_dir):
        reason = why_not_writable(_beside(data_dir)) if cache_dir is None and data_dir.is_dir() else None
        if reason:
            raise UserError(
                f"{data_dir} is an image folder, but nothing can be packed beside it ({reason}); run: mdaug pack "
                f"--data_dir {quote(str(data_dir))} --output_dir <folder> --image_size {image_size}, and give that "
                "folder as --data_dir"
            )
        return None
    content = provenance.read(data_dir, "images")["hash"]
    height, width, channels = read_index(data_dir / "train")["image_shape"]
    if (height, width) != height_width(image_size):
        raise UserError(
            f"{data_dir} holds images of {height}x{width}, but image_size is {image_size}; "
            f"give --image_size {written(height, width)} or pack the image folder again with "
            f"--image_size {image_size}"
        )
    if channels != {"rgb": 3, "gray": 1}.get(options.get("image_mode", "auto"), channels):
        raise UserError(
            f"{data_dir} holds images of {channels} channel(s), but image_mode is {options['image_mode']}; "
            f"pack the image folder again with --image_mode {options['image_mode']}"
        )
    return content


def is_packed(data_dir: Path) -> bool:
    """Return whether a folder is packed, or was to be: what simulate and spectrogram write are image folders."""
    if (provenance.load(data_dir) or {}).get("kind") == "image-folder":
        return False
    return (data_dir / RUN_FILE).is_file() or (data_dir / "train" / INDEX).is_file()


def _beside(data_dir: Path) -> Path:
    return data_dir.resolve().parent / ".mdaug-cache"
