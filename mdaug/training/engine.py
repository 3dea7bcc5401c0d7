"""DeepSpeed, driven directly: one engine per trained network."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mdaug import distributed
from mdaug.training import deepspeed_json, elastic, sharded_tensors
from mdaug.training.deepspeed_json import ADAM_EPS, zero_stage
from mdaug.training.gradient_buckets import GradientBuckets
from mdaug.training.options import TrainingConfig
from shards.errors import UserError

MASTERS_AT_ONCE = 50_000_000  # elements that are summed up over the ranks in one piece: 200 MB


def resolve_precision(requested: str, device: torch.device) -> str:
    """Return "no", "bf16" or "fp16" for "auto" and check the others against the device."""
    if requested == "auto":
        if device.type == "cpu":
            return "no"
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    distributed.require_gpu_for_fp16(requested, device.type)
    return requested


def check_before_data(config: TrainingConfig) -> None:
    """Refuse a DeepSpeed JSON of the user that contradicts the flags, before any data are read."""
    if config.deepspeed_config is not None:
        precision = resolve_precision(config.mixed_precision, distributed.device())
        deepspeed_json.check(config, distributed.world_size(), precision)


class Engine:
    """A network under DeepSpeed: forward, backward over micro batches, one optimizer step, save and load.

    Every rank must make the same calls: under ZeRO each of them may be a collective.

    Args:
        module: the network; it is moved to this rank's device.
        config: learning rate, betas and weight decay of AdamW.
        settings: DeepSpeed configuration without "auto".
        universal: `load` will read a checkpoint of another number of ranks or another ZeRO stage.
    """

    def __init__(self, module: nn.Module, config: TrainingConfig, settings: dict[str, Any], universal: bool = False):
        deepspeed = distributed.import_deepspeed()
        device = distributed.device()
        module.to(device)
        parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(
            parameters,
            lr=config.lr,
            betas=config.adam_betas,
            weight_decay=config.weight_decay,
            eps=ADAM_EPS,
            fused=True,
        )
        self.stage = zero_stage(settings)
        self.universal = universal
        if universal and self.stage > 0:
            settings = {**settings, "checkpoint": {"load_universal": True}}
        self.deepspeed, _, _, _ = deepspeed.initialize(
            model=module, optimizer=optimizer, config=settings, dist_init_required=False
        )
        if self.stage == 0:
            # `initialize` cannot broadcast weights in another layout, and stages 1 to 3 choose the layout themselves.
            module.to(memory_format=distributed.memory_format())
        self.module = module
        self.device = device
        self.max_grad_norm = config.max_grad_norm
        self.grad_norm: torch.Tensor | None = None
        self.scaler: torch.amp.GradScaler | None = self.deepspeed.torch_autocast_z0_gradscaler  # of fp16 at stage 0
        if self.stage > 0:  # DeepSpeed would raise where the loss scale cannot fall further; `train` has advice
            self.deepspeed.optimizer.loss_scaler.raise_error_at_min_scale = False
        # AdamW's own kernel clips and skips steps (see `step`): DeepSpeed's passes over the gradients are not needed.
        self.fused = self.stage == 0 and self.deepspeed.optimizer is optimizer
        if self.fused:
            self.deepspeed.clip_fp32_gradients = lambda: None
        # At stage 0 DeepSpeed would reduce after the backward pass, in one piece, and wait for it.
        self.buckets: GradientBuckets | None = None
        if self.stage == 0:
            self.deepspeed.enable_backward_allreduce = False
            if distributed.world_size() > 1:
                sent = str(settings.get("communication_data_type") or "fp32")
                self.buckets = GradientBuckets(
                    parameters,
                    due=self.deepspeed.is_gradient_accumulation_boundary,
                    dtype=None if sent == "fp32" else distributed.DTYPES[sent],
                )
        # Steps skipped because their gradient was not finite; on the device, so that no step waits for them.
        self.skipped = torch.zeros((), device=device)
        self.skipped_in_a_row = torch.zeros((), device=device)

    def __call__(self, *inputs: Any, **keywords: Any) -> Any:
        """Run the network; ZeRO-3 parameters exist only inside this call."""
        return self.deepspeed(*inputs, **keywords)

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradient of one micro batch's mean loss; DeepSpeed divides by the number of micro batches."""
        self.deepspeed.backward(loss)

    def step(self, lr: float) -> None:
        """Close a micro batch; at the last one of an optimizer step, apply it with learning rate `lr`.

        A step whose gradient is not finite on any rank is skipped on all of them, and counted.
        """
        boundary = self.deepspeed.is_gradient_accumulation_boundary()
        if not boundary:
            self.deepspeed.step()
            return
        optimizer = self.deepspeed.optimizer
        for group in optimizer.param_groups:
            group["lr"] = lr
        if self.stage == 0:
            if self.buckets is not None:
                self.buckets.finish()
            # DeepSpeed neither reports the norm nor guards the step here. The gradients are reduced already,
            # so all ranks see the same. A fused optimizer divides them by grad_scale, and skips the step by itself
            # where found_inf is 1. With fp16 the GradScaler sets found_inf and multiplies our grad_scale by its own.
            self.grad_norm = self._norm_of_gradients()
            skipped = (~self.grad_norm.isfinite()).float()
            if self.fused and self.scaler is None:
                optimizer.found_inf = skipped
            if self.fused and self.max_grad_norm:
                optimizer.grad_scale = (self.grad_norm / self.max_grad_norm).clamp(min=1)
            self.deepspeed.step()
        else:
            self.deepspeed.step()
            self.grad_norm = torch.as_tensor(self.deepspeed.get_global_grad_norm(), device=self.device)
            skipped = torch.full((), float(not self.deepspeed.was_step_applied()), device=self.device)
        self.skipped += skipped
        self.skipped_in_a_row = (self.skipped_in_a_row + 1) * skipped

    def _norm_of_gradients(self) -> torch.Tensor:
        norm = nn.utils.get_total_norm([p.grad for p in self.module.parameters() if p.grad is not None])
        if self.scaler is None:
            return norm
        assert self.scaler._scale is not None  # made by the backward pass
        return norm / self.scaler._scale

    def loss_scale(self) -> dict[str, Any]:
        """Return the state of the scaler of fp16 at stage 0, which DeepSpeed's checkpoints leave out; else nothing."""
        return {} if self.scaler is None else self.scaler.state_dict()

    def load_loss_scale(self, state: dict[str, Any]) -> None:
        """Restore what `loss_scale` returned; another precision has no use for it."""
        if self.scaler is not None and state:
            self.scaler.load_state_dict(state)

    def full_parameters(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield (name, whole fp32 value) of every parameter, from the optimizer's fp32 master weights."""
        for name, parameter in self.module.named_parameters():
            yield name, self._whole(parameter)

    def master_shards(self) -> Iterator[torch.Tensor]:
        """Yield this rank's part (`sharded_tensors.own_part`) of every parameter's fp32 master weights."""
        parameters: list[Any] = list(self.module.parameters())  # to which DeepSpeed adds attributes
        if self.stage == 3:
            yield from self._shards_of_stage_3(parameters)
        elif parameters[0].dtype == torch.float32:
            yield from (sharded_tensors.own_part(parameter.detach()) for parameter in parameters)
        else:
            yield from self._cut_masters(parameters)

    def _shards_of_stage_3(self, parameters: list[Any]) -> Iterator[torch.Tensor]:
        """Yield the parts at stage 3, which divides parameters in the same way, but padded.

        Under offload they lie in CPU memory and come in one transfer; DeepSpeed's function waits for each parameter.
        """
        optimizer = self.deepspeed.optimizer
        found: dict[Any, torch.Tensor] = {}
        for group, flat in zip(optimizer.fp16_groups, optimizer.fp32_partitioned_groups_flat, strict=True):
            here = flat.detach().to(self.device, non_blocking=True)
            padded = here.split([parameter.ds_tensor.ds_numel for parameter in group])
            found.update(zip(group, padded, strict=True))
        for parameter in parameters:
            start, stop = sharded_tensors.shard_bounds(parameter.ds_numel, distributed.rank(), distributed.world_size())
            part = found[parameter][: stop - start]
            yield part.view(parameter.ds_shape) if distributed.world_size() == 1 else part

    @torch.no_grad()
    def _cut_masters(self, parameters: list[Any]) -> Iterator[torch.Tensor]:
        """Yield this rank's part of fp32 masters that are cut otherwise: stages 1 and 2 under DeepSpeed's fp16.

        They are summed up in large pieces. DeepSpeed's function for one parameter makes a collective for each.
        """
        while parameters:
            ends = itertools.accumulate(parameter.numel() for parameter in parameters)
            count = max(1, sum(end <= MASTERS_AT_ONCE for end in ends))
            some, parameters = parameters[:count], parameters[count:]
            flat = torch.zeros(sum(parameter.numel() for parameter in some), device=self.device)
            views = flat.split([parameter.numel() for parameter in some])
            for parameter, view in zip(some, views, strict=True):
                if parameter._hp_mapping is not None:  # a part of it is here
                    address = parameter._hp_mapping.lp_fragment_address
                    view.narrow(0, address.start, address.numel).copy_(parameter._hp_mapping.get_hp_fragment())
            distributed.sum_over_ranks(flat)
            for parameter, view in zip(some, views, strict=True):
                yield sharded_tensors.own_part(view.view(parameter.shape)).clone()

    def _whole(self, parameter: nn.Parameter) -> torch.Tensor:
        from deepspeed.utils import safe_get_full_fp32_param

        if self.stage == 3 or parameter.dtype != torch.float32:
            return safe_get_full_fp32_param(parameter)
        return parameter.detach()

    def full_state_dict(self) -> dict[str, torch.Tensor]:
        """Return all parameters (fp32, whole) and buffers on the CPU; the names are the module's own."""
        state = {name: value.detach().cpu().clone() for name, value in self.full_parameters()}
        state.update({name: buffer.detach().cpu().clone() for name, buffer in self.module.named_buffers()})
        return state

    def snapshot(self, folder: Path) -> dict[Path, Callable[[Path], object]]:
        """Copy this rank's shard of weights and optimizer state to CPU memory; every rank calls it.

        Returns the files below `folder`/engine and what writes each, on any thread.
        """
        taken: dict[Path, Callable[[Path], object]] = {}

        def take(state_dict: Any, path: str) -> None:
            taken[Path(path)] = partial(torch.save, to_host(state_dict))

        # DeepSpeed hands every file to its checkpoint engine. Its own engine for writing in the background needs a
        # compiled op (libaio) and CUDA; here the state is only kept.
        self.deepspeed.checkpoint_engine.save = take
        self.deepspeed.save_checkpoint(str(folder), tag="engine", save_latest=False)
        return taken

    def load(self, folder: Path) -> None:
        """Read what `snapshot` wrote; an engine built with `universal` may have other ranks or another stage.

        Raises UserError if DeepSpeed finds nothing there.
        """
        optimizer = self.deepspeed.optimizer
        source = elastic.open_source(folder) if self.universal else None
        if source is not None and self.stage == 0:
            elastic.load_at_stage_0(source, self.module, optimizer)
            return
        if source is not None:
            elastic.answer(source, optimizer, self.stage)
        scaler = getattr(optimizer, "loss_scaler", None)
        path, _ = self.deepspeed.load_checkpoint(str(folder), tag="engine" if source is None else elastic.FOLDER)
        if source is not None:
            source.close()
            elastic.place_steps(optimizer.optimizer)
        if path is None:
            raise UserError(f"{folder} holds no DeepSpeed state; delete that folder to resume from the one before")
        if self.stage == 0:
            elastic.lay_out_moments(optimizer)
        if scaler is not None and type(optimizer.loss_scaler) is not type(scaler):  # of a run in another precision
            optimizer.loss_scaler, optimizer.dynamic_loss_scale = scaler, scaler.dynamic


def to_host(state: Any) -> Any:
    """Copy nested containers, their tensors to CPU memory, so that the training cannot change them any more."""
    if isinstance(state, torch.Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        return {key: to_host(value) for key, value in state.items()}
    if isinstance(state, list | tuple) and not hasattr(state, "_fields"):
        return type(state)(to_host(value) for value in state)
    return copy.deepcopy(state)
