"""Tensors sharded over the ranks: every rank holds, writes and reads its shard of each flattened tensor.

    pieces/rank-00001-of-00002.safetensors      name -> the shard of rank 1, one-dimensional

They are divided as in ZeRO-3: shards of ceil(n / ranks) elements in rank order, the last ones shorter or empty.
"""  # fmt: skip

from __future__ import annotations

from pathlib import Path
from typing import Any

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
    return elements(tensor, *shard_bounds(tensor.numel(), distributed.rank(), distributed.world_size()))


def elements(tensor: torch.Tensor, start: int, stop: int) -> torch.Tensor:
    """Return elements [start, stop) of a flattened tensor; they share its memory where that is contiguous."""
    if start == stop or tensor.is_contiguous():
        return tensor.flatten()[start:stop]
    # Of another layout, such as channels_last, only the rows that hold them are copied.
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

    A file is opened when a shard of it is needed: where as many ranks read as have written, each opens its own alone.

    Raises UserError if files are missing in the folder.
    """

    def __init__(self, folder: Path):
        self._paths = sorted(folder.glob("rank-*.safetensors"))
        if not self._paths or len(self._paths) != int(self._paths[0].stem.rpartition("-")[2]):
            raise UserError(
                f"{folder} is incomplete: it holds {len(self._paths)} files; resume from an older checkpoint"
            )
        self._opened: dict[int, Any] = {}

    def names(self) -> list[str]:
        """Return the names of the tensors."""
        return list(self._file(0).keys())

    def read(self, name: str, numel: int, rank: int = 0, ranks: int = 1) -> torch.Tensor:
        """Return the shard that `rank` of `ranks` needs, one-dimensional fp32 on the CPU; only it is read.

        Args:
            name: of the tensor.
            numel: elements of the whole tensor.
            rank, ranks: default: the whole tensor.
        """
        start, stop = shard_bounds(numel, rank, ranks)
        parts = [torch.empty(0)]
        for writer in range(len(self._paths)):
            begin, end = shard_bounds(numel, writer, len(self._paths))
            first, after = max(start, begin), min(stop, end)
            if first < after:
                parts.append(self._file(writer).get_slice(name)[first - begin : after - begin].float())
        return torch.cat(parts)

    def _file(self, writer: int) -> Any:
        if writer not in self._opened:
            self._opened[writer] = safe_open(self._paths[writer], "pt")
        return self._opened[writer]
