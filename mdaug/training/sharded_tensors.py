"""Tensors sharded over the ranks: every rank holds, writes and reads its shard of each flattened tensor.

    pieces/rank-00001-of-00002.safetensors      name -> the shard of rank 1, one-dimensional

They are divided as in ZeRO-3: shards of ceil(n / ranks) elements in rank order, the last ones shorter or empty.
"""  # fmt: skip

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open

from mdaug import distributed
from shards.errors import UserError


def shard_bounds(numel: int, rank: int, ranks: int) -> tuple[int, int]:
    """Return the first element of a rank's shard of `numel` elements, and the one after its last."""
    size = -(-numel // ranks)
    return min(rank * size, numel), min((rank + 1) * size, numel)


def local_shard(tensor: torch.Tensor) -> torch.Tensor:
    """Return this rank's shard of a whole tensor; it shares the tensor's memory where that is contiguous."""
    start, stop = shard_bounds(tensor.numel(), distributed.rank(), distributed.world_size())
    if start == stop or tensor.is_contiguous():
        return tensor.flatten()[start:stop]
    # Of another layout, such as channels_last, only the rows that hold the shard are copied.
    row = tensor[0].numel()
    first = start // row
    return tensor[first : -(-stop // row)].flatten()[start - first * row : stop - first * row]


def own_part(tensor: torch.Tensor) -> torch.Tensor:
    """Return this rank's shard or, on one rank, the tensor as it lies in memory: neither copies a whole weight."""
    return tensor if distributed.world_size() == 1 else local_shard(tensor)


def gather(shard: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Return the whole tensor of `own_part` on every rank; every rank calls it. One rank shares its memory."""
    if distributed.world_size() == 1:
        return shard.view(shape) if shard.is_contiguous() else shard
    size = -(-shape.numel() // distributed.world_size())
    padded = torch.nn.functional.pad(shard, (0, size - len(shard))) if len(shard) < size else shard
    return distributed.gather_over_ranks(padded)[: shape.numel()].view(shape)


def file_name() -> str:
    """Return the name of the file with this rank's shards."""
    return f"rank-{distributed.rank():05d}-of-{distributed.world_size():05d}.safetensors"


class Reader:
    """Reads the shards that any number of ranks have written, for any other number of ranks.

    Raises UserError if files are missing in the folder.
    """

    def __init__(self, folder: Path):
        paths = sorted(folder.glob("rank-*.safetensors"))
        if not paths or len(paths) != int(paths[0].stem.rpartition("-")[2]):
            raise UserError(f"{folder} is incomplete: it holds {len(paths)} files; resume from an older checkpoint")
        self._files = [safe_open(path, "pt") for path in paths]

    def names(self) -> list[str]:
        """Return the names of the tensors."""
        return list(self._files[0].keys())

    def read(self, name: str, rank: int = 0, ranks: int = 1) -> torch.Tensor:
        """Return the shard that `rank` of `ranks` needs, one-dimensional fp32 on the CPU; only it is read."""
        slices = [file.get_slice(name) for file in self._files]
        lengths = [part.get_shape()[0] for part in slices]
        start, stop = shard_bounds(sum(lengths), rank, ranks)
        parts, offset = [torch.empty(0)], 0
        for part, length in zip(slices, lengths, strict=True):
            first, after = max(start - offset, 0), min(stop - offset, length)
            if first < after:
                parts.append(part[first:after].float())
            offset += length
        return torch.cat(parts)
