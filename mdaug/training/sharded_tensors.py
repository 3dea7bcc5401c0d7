"""Tensors cut over the ranks: every rank holds, writes and reads its piece of each flattened tensor.

    pieces/rank-00001-of-00002.safetensors      name -> the piece of rank 1, one-dimensional

The cut is that of ZeRO-3: pieces of ceil(n / ranks) elements in rank order, the last ones shorter or empty.
"""  # fmt: skip

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open

from mdaug import distributed
from shards.errors import UserError


def bounds(numel: int, rank: int, ranks: int) -> tuple[int, int]:
    """Return the first element of a rank's piece of `numel` elements, and the one after its last."""
    size = -(-numel // ranks)
    return min(rank * size, numel), min((rank + 1) * size, numel)


def cut(tensor: torch.Tensor) -> torch.Tensor:
    """Return this rank's piece of a whole tensor; it shares the tensor's memory where that is contiguous."""
    start, stop = bounds(tensor.numel(), distributed.rank(), distributed.world_size())
    return tensor.flatten()[start:stop]


def join(piece: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Return the whole tensor on every rank; every rank calls it. With one rank it shares the piece's memory."""
    size = -(-shape.numel() // distributed.world_size())
    padded = torch.nn.functional.pad(piece, (0, size - len(piece))) if len(piece) < size else piece
    return distributed.gather_over_ranks(padded)[: shape.numel()].view(shape)


def file_name() -> str:
    """Return the name of the file with this rank's pieces."""
    return f"rank-{distributed.rank():05d}-of-{distributed.world_size():05d}.safetensors"


class Reader:
    """Reads the pieces that any number of ranks have written, cut in any other way.

    Raises UserError if the folder lacks files.
    """

    def __init__(self, folder: Path):
        paths = sorted(folder.glob("rank-*.safetensors"))
        if not paths or len(paths) != int(paths[0].stem.rpartition("-")[2]):
            raise UserError(f"{folder} is incomplete: {len(paths)} files are left; resume from an older checkpoint")
        self._files = [safe_open(path, "pt") for path in paths]

    def names(self) -> list[str]:
        """Return the names of the tensors."""
        return list(self._files[0].keys())

    def read(self, name: str, rank: int = 0, ranks: int = 1) -> torch.Tensor:
        """Return the piece that `rank` of `ranks` needs, one-dimensional fp32 on the CPU; only it is read."""
        slices = [file.get_slice(name) for file in self._files]
        lengths = [piece.get_shape()[0] for piece in slices]
        start, stop = bounds(sum(lengths), rank, ranks)
        parts, offset = [torch.empty(0)], 0
        for piece, length in zip(slices, lengths, strict=True):
            first, after = max(start - offset, 0), min(stop - offset, length)
            if first < after:
                parts.append(piece[first:after].float())
            offset += length
        return torch.cat(parts)
