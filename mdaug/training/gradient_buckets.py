"""Means of the gradients over the ranks at ZeRO stage 0, sent while the backward pass still computes others."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.distributed
from torch import nn

from mdaug import distributed

BUCKET_BYTES = (
    25 * 2**20
)  # as in PyTorch's DistributedDataParallel: large enough for a network, small enough to overlap
ALIGNED = 16  # elements; optimizer kernels read aligned gradients four at a time


class GradientBuckets:
    """Reduces gradients in buckets, each as soon as its last gradient is there, without waiting (Li et al. 2020).

    Buckets hold the parameters backwards, as gradients arrive, and go off in that order on every rank. At the end each
    gradient is a view into its bucket, laid out in memory like its parameter; no gradient is copied back.

    Args:
        parameters: those of the network, on this rank's device, in their final memory layout.
        due: whether the backward pass that is running is the last one of the optimizer step.
        dtype: how gradients travel; None is the parameters' own.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], due: Callable[[], bool], dtype: torch.dtype | None = None):
        self.due, self.dtype = due, dtype
        self.buckets = _divided(list(reversed(parameters)))
        self._ready = [0] * len(self.buckets)
        self._under_way: list[tuple[torch.Tensor, torch.distributed.Work]] = []
        for number, bucket in enumerate(self.buckets):
            for parameter in bucket:
                parameter.register_post_accumulate_grad_hook(lambda _, number=number: self._arrived(number))

    def _arrived(self, number: int) -> None:
        if not self.due():
            return
        self._ready[number] += 1
        while (at := len(self._under_way)) < len(self.buckets) and self._ready[at] == len(self.buckets[at]):
            self._send(at)

    def _send(self, number: int) -> None:
        bucket = self.buckets[number]
        size = sum(map(_padded, bucket))
        buffer = torch.zeros(size, dtype=self.dtype or bucket[0].dtype, device=bucket[0].device)
        views = _views(buffer, bucket)
        given = [(view, p.grad) for view, p in zip(views, bucket, strict=True) if p.grad is not None]
        if given:  # a parameter that no rank has used counts as zero
            torch._foreach_copy_([view for view, _ in given], [gradient for _, gradient in given])
        buffer /= distributed.world_size()
        for parameter in bucket:
            parameter.grad = None
        work = torch.distributed.all_reduce(buffer, async_op=True)
        assert work is not None
        self._under_way.append((buffer, work))

    def finish(self) -> None:
        """Set the mean gradients of all parameters; every rank calls it after the last backward pass of a step."""
        for number in range(len(self._under_way), len(self.buckets)):
            self._send(number)
        for bucket, (buffer, work) in zip(self.buckets, self._under_way, strict=True):
            work.wait()  # on a GPU its stream waits, not this process
            whole = buffer.to(bucket[0].dtype)
            for parameter, gradient in zip(bucket, _views(whole, bucket), strict=True):
                parameter.grad = gradient
        self._under_way.clear()
        self._ready = [0] * len(self.buckets)


def _divided(parameters: list[nn.Parameter]) -> list[list[nn.Parameter]]:
    buckets: list[list[nn.Parameter]] = []
    held = BUCKET_BYTES
    for parameter in parameters:
        if held + parameter.nbytes > BUCKET_BYTES or parameter.dtype != buckets[-1][0].dtype:
            buckets.append([])
            held = 0
        buckets[-1].append(parameter)
        held += parameter.nbytes
    return buckets


def _padded(parameter: nn.Parameter) -> int:
    """Return the elements that a parameter takes in a buffer."""
    return -(-parameter.numel() // ALIGNED) * ALIGNED


def _views(buffer: torch.Tensor, bucket: list[nn.Parameter]) -> list[torch.Tensor]:
    """Return the part of each parameter in a bucket's buffer, with its shape and strides."""
    views, start = [], 0
    for parameter in bucket:
        views.append(buffer.as_strided(parameter.shape, parameter.stride(), start))
        start += _padded(parameter)
    return views
