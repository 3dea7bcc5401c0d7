"""DeepSpeed, driven directly: one engine per trained network."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mdaug import distributed
from mdaug.training import elastic, pieces
from mdaug.training.run import BatchPlan, TrainingConfig
from shards.errors import UserError

CONFIGS = Path(__file__).resolve().parents[2] / "deepspeed_configs"
ADAM_EPS = 1e-8  # added to the root of the second moment


def resolve_precision(requested: str, device: torch.device) -> str:
    """Return "no", "bf16" or "fp16" for "auto" and check the others against the device."""
    if requested == "auto":
        if device.type == "cpu":
            return "no"
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if requested == "fp16" and device.type == "cpu":
        raise UserError("mixed_precision=fp16 needs a GPU: DeepSpeed refuses fp16 on a CPU; use no or bf16")
    return requested


def deepspeed_config(config: TrainingConfig, plan: BatchPlan, precision: str) -> dict[str, Any]:
    """Return the DeepSpeed configuration of the run, every "auto" filled in or left to DeepSpeed's default.

    Raises UserError if a DeepSpeed JSON of the user contradicts the flags, naming both values.
    """
    suffix = "fp32" if precision == "no" else precision
    path = config.deepspeed_config or CONFIGS / f"zero{config.zero_stage}_{suffix}.json"
    if not path.is_file():
        raise UserError(f"--deepspeed_config {path} does not exist")
    settings = json.loads(path.read_text(encoding="utf-8"))
    from_flags: dict[str, tuple[str, Any]] = {
        "train_batch_size": ("global batch", plan.global_batch),
        "train_micro_batch_size_per_gpu": ("batch_size", plan.micro_batch),
        "gradient_accumulation_steps": ("accumulation", plan.accumulation),
        "gradient_clipping": ("max_grad_norm", config.max_grad_norm),
    }
    for key, (name, value) in from_flags.items():
        _agree(path, key, settings.get(key), name, value)
        settings[key] = value
    if config.zero_stage:  # 0, the default, leaves the choice to the JSON
        _agree(path, "zero_optimization.stage", zero_stage(settings), "zero_stage", config.zero_stage)
    optimizer = settings.pop("optimizer", {})  # made here; DeepSpeed would ignore the section
    _agree(path, "optimizer.type", optimizer.get("type"), "the optimizer", "AdamW")
    own: dict[str, tuple[str, Any]] = {
        "lr": ("lr", config.lr),
        "betas": ("adam_betas", list(config.adam_betas)),
        "weight_decay": ("weight_decay", config.weight_decay),
        "eps": ("AdamW's eps", ADAM_EPS),
    }
    for key, (name, value) in own.items():
        _agree(path, f"optimizer.params.{key}", optimizer.get("params", {}).get(key), name, value)
    if "scheduler" in settings:
        raise UserError(
            f'{path}: "scheduler" is {settings["scheduler"].get("type")}, but the learning rate follows lr={config.lr} '
            "and this command's own schedule; remove the section"
        )
    _fill_precision(path, settings, precision)
    settings.setdefault("zero_force_ds_cpu_optimizer", False)  # else offload refuses torch's AdamW
    return _without_auto(settings)


def _agree(path: Path, key: str, there: Any, name: str, value: Any) -> None:
    if there not in (None, "auto", value):
        raise UserError(f'{path}: "{key}" is {there}, but {name} is {value}; set it to "auto" or agree')


def _fill_precision(path: Path, settings: dict[str, Any], precision: str) -> None:
    """Fill "enabled": "auto" and refuse sections that switch on another precision than the flag says."""
    autocast = settings.get("torch_autocast", {})
    dtype = str(autocast.get("dtype", "bfloat16")).removeprefix("torch.")
    sections = {name: settings.get(name, {}) for name in ("fp16", "bf16")}
    on = set()
    for name, section in [*sections.items(), ({"float16": "fp16", "bfloat16": "bf16"}.get(dtype, dtype), autocast)]:
        if section.get("enabled") == "auto":
            section["enabled"] = name == precision
        if section.get("enabled"):
            on.add(name)
    if on != {precision} - {"no"}:
        there = " and ".join(sorted(on)) or "neither bf16 nor fp16"
        raise UserError(f"{path} switches {there} on, but mixed_precision is {precision}; make them agree")


def _without_auto(settings: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _without_auto(value) if isinstance(value, dict) else value
        for key, value in settings.items()
        if value != "auto"
    }


def zero_stage(settings: dict[str, Any]) -> int:
    """Return the ZeRO stage of a DeepSpeed configuration."""
    return settings.get("zero_optimization", {}).get("stage", 0)


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
        self.module = module
        self.device = device
        self.max_grad_norm = config.max_grad_norm
        self.grad_norm: torch.Tensor | None = None
        scaler = self.deepspeed.torch_autocast_z0_gradscaler
        # AdamW's own kernel clips and leaves steps out (see `step`): DeepSpeed's passes over the gradients are spared.
        self.fused = self.stage == 0 and scaler is None and self.deepspeed.optimizer is optimizer
        if self.fused:
            self.deepspeed.clip_fp32_gradients = lambda: None
            self.deepspeed.enable_backward_allreduce = distributed.world_size() > 1
        # Steps left out because their gradient was not finite; on the device, so that no step waits for them.
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

        A step whose gradient is not finite on any rank is left out on all of them, and counted.
        """
        boundary = self.deepspeed.is_gradient_accumulation_boundary()
        if not boundary:
            self.deepspeed.step()
            return
        optimizer = self.deepspeed.optimizer
        for group in optimizer.param_groups:
            group["lr"] = lr
        if self.stage == 0:
            # DeepSpeed neither reports the norm nor guards the step here. The gradients are reduced already,
            # so all ranks see the same. A fused optimizer divides them by grad_scale, and leaves the step out by itself
            # where found_inf is 1.
            self.grad_norm = self._norm_of_gradients()
            skipped = (~self.grad_norm.isfinite()).float()
            if self.fused:
                optimizer.found_inf = skipped
                limit = self.max_grad_norm
                optimizer.grad_scale = (self.grad_norm / limit).clamp(min=1) if limit else None
            self.deepspeed.step()
        else:
            self.deepspeed.step()
            self.grad_norm = torch.as_tensor(self.deepspeed.get_global_grad_norm(), device=self.device)
            skipped = torch.tensor(float(not self.deepspeed.was_step_applied()), device=self.device)
        self.skipped += skipped
        self.skipped_in_a_row = (self.skipped_in_a_row + 1) * skipped

    def _norm_of_gradients(self) -> torch.Tensor:
        norm = nn.utils.get_total_norm([p.grad for p in self.module.parameters() if p.grad is not None])
        scaler = self.deepspeed.torch_autocast_z0_gradscaler
        return norm if scaler is None else norm / scaler._scale

    def full_parameters(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield (name, whole fp32 value) of every parameter, from the optimizer's fp32 master weights."""
        for name, parameter in self.module.named_parameters():
            yield name, self._whole(parameter)

    def master_pieces(self) -> Iterator[torch.Tensor]:
        """Yield this rank's piece (see `pieces`) of every parameter's fp32 master weights."""
        from deepspeed.utils import safe_get_local_fp32_param

        parameter: Any  # DeepSpeed adds attributes
        for parameter in self.module.parameters():
            if self.stage == 3:  # cut in the same way, but padded
                start, stop = pieces.bounds(parameter.ds_numel, distributed.rank(), distributed.world_size())
                # Under offload the masters lie in CPU memory.
                yield safe_get_local_fp32_param(parameter)[: stop - start].to(self.device, non_blocking=True)
            else:
                yield pieces.cut(self._whole(parameter))

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
        """Copy this rank's share of weights and optimizer state to CPU memory; every rank calls it.

        Returns the files below `folder`/engine and what writes each, on any thread.
        """
        taken: dict[Path, Callable[[Path], object]] = {}

        def take(state_dict: Any, path: str) -> None:
            taken[Path(path)] = partial(torch.save, to_host(state_dict))

        # DeepSpeed hands every file to its checkpoint engine. Its own engine for writing in the background wants a
        # compiled op (libaio) and CUDA; here the state is only kept.
        self.deepspeed.checkpoint_engine.save = take
        self.deepspeed.save_checkpoint(str(folder), tag="engine", save_latest=False)
        return taken

    def load(self, folder: Path) -> None:
        """Read what `snapshot` wrote; an engine built with `universal` may have other ranks or another stage.

        Raises UserError if DeepSpeed finds nothing there.
        """
        tag = elastic.convert(folder).name if self.universal else "engine"
        if self.universal and self.stage == 0:
            elastic.load_at_stage_0(folder / tag, self.module, self.deepspeed.optimizer)
            return
        path, _ = self.deepspeed.load_checkpoint(str(folder), tag=tag)
        if path is None:
            raise UserError(f"{folder} holds no DeepSpeed state; delete that folder to resume from the one before")


def to_host(state: Any) -> Any:
    """Copy nested containers, their tensors to CPU memory, so that the training cannot change them any more."""
    if isinstance(state, torch.Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        return {key: to_host(value) for key, value in state.items()}
    if isinstance(state, list | tuple) and not hasattr(state, "_fields"):
        return type(state)(to_host(value) for value in state)
    return copy.deepcopy(state)
