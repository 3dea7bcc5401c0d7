"""GroupNorm in the working precision: autocast would compute it, and the activation after it, in fp32."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class WorkingGroupNorm(nn.GroupNorm):
    """A GroupNorm whose output on CUDA has the type of its input, also under autocast.

    The kernel sums in fp32 whatever the type. Under autocast, fp32 norms move 2.5 times as many bytes as bf16 ones do.
    """

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return the normalised (B, C, ...)."""
        if not hidden_states.is_cuda:
            return super().forward(hidden_states)
        with torch.autocast("cuda", enabled=False):
            dtype = hidden_states.dtype  # the kernel wants one type
            return functional.group_norm(
                hidden_states, self.num_groups, self.weight.to(dtype), self.bias.to(dtype), self.eps
            )


def use_working_precision(network: nn.Module) -> None:
    """Let the GroupNorms of a network work in the precision of their inputs; weights and their names stay."""
    for module in network.modules():
        if type(module) is nn.GroupNorm:
            module.__class__ = WorkingGroupNorm
