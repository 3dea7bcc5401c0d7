"""Resume on another number of ranks or another ZeRO stage: DeepSpeed's universal checkpoint format.

DeepSpeed's own state is sharded for one number of ranks. The universal format holds whole tensors per
parameter, `zero/<name>/{fp32,exp_avg,exp_avg_sq,step}.pt`. DeepSpeed converts ZeRO 1-3 to it, but

- it cannot convert stage 0 (a plain torch optimizer), nor load the format at stage 0: both are done here;
- what it writes beside the parameters fits the source's stage only: `optimizer_state.pt` is rewritten
  here so that stages 1, 2 and 3 can read it.

Buffers are not part of the format; the task keeps its own (`extra.safetensors`).
"""

from __future__ import annotations

import contextlib
import io
import shutil
import types
from pathlib import Path
from typing import Any

import torch

from mdaug import distributed

FOLDER = "universal"
MOMENTS = ("exp_avg", "exp_avg_sq")  # of AdamW


def convert(checkpoint: Path) -> Path:
    """Write `checkpoint`/universal from `checkpoint`/engine, on rank 0; every rank calls it. Returns its folder.

    The conversion is repeated each time, since a half-written one cannot be distinguished from a complete one.
    """
    target = checkpoint / FOLDER
    if distributed.is_main():
        shutil.rmtree(target, ignore_errors=True)
        source = checkpoint / "engine"
        plain = source / "mp_rank_00_model_states.pt"
        if not list(source.glob("*_optim_states.pt")):
            groups = _from_stage_0(_read(plain), target)
        else:
            groups = _from_sharded(source, target)
        model_states = _read(next(iter(sorted(source.glob("*model_states.pt")))))
        _write_common(target, groups, model_states)
    distributed.wait_for_work()
    return target


def load_at_stage_0(universal: Path, module: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Set fp32 weights and AdamW state of a network that one torch optimizer holds whole."""
    for name, parameter in module.named_parameters():
        folder = universal / "zero" / name
        with torch.no_grad():
            parameter.copy_(_tensor(folder / "fp32.pt").view_as(parameter))
        # The fused kernel wants the moments to lie in memory as the parameter does.
        state = {moment: torch.empty_like(parameter, requires_grad=False) for moment in MOMENTS}
        for moment, value in state.items():
            value.copy_(_tensor(folder / f"{moment}.pt").view_as(parameter))
        # Where torch keeps the step count depends on the kind of AdamW.
        on_device = optimizer.param_groups[0]["fused"] or optimizer.param_groups[0]["capturable"]
        step = torch.as_tensor(_read(folder / "step.pt"), dtype=torch.float32)
        optimizer.state[parameter] = {"step": step.to(parameter.device if on_device else "cpu"), **state}


def lay_out_moments(optimizer: torch.optim.Optimizer) -> None:
    """Give AdamW's moments the strides of their weights.

    A checkpoint keeps the strides of the device that wrote it, channels_last on a GPU. The fused kernel of the CPU
    takes moments of another layout without a check, element by element in memory: a scrambled update.
    """
    for parameter, state in optimizer.state.items():
        for moment in MOMENTS:
            if state[moment].stride() != parameter.stride():
                state[moment] = torch.empty_like(parameter, requires_grad=False).copy_(state[moment])


def _from_stage_0(model_states: dict[str, Any], target: Path) -> list[dict[str, Any]]:
    """Write the parameters of a stage-0 checkpoint and return its parameter groups."""
    optimizer = model_states["optimizer"]
    buffers = set(model_states["buffer_names"])
    names = [name for name in model_states["module"] if name not in buffers]
    for index, name in enumerate(names):
        state = optimizer["state"][index]
        _write_parameter(target, name, model_states["module"][name], state, state["step"])
    return optimizer["param_groups"]


def _from_sharded(source: Path, target: Path) -> list[dict[str, Any]]:
    """Let DeepSpeed merge the ranks' shards, add what it leaves out, and return the parameter groups."""
    from deepspeed.checkpoint import ds_to_universal

    options = types.SimpleNamespace(
        input_folder=str(source),
        output_folder=str(target),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        ds_to_universal.main(options)
    common = _read(target / "zero" / "optimizer_state.pt")
    inner = common.get("optimizer_state_dict")
    if inner is None:
        return common["param_groups"]
    # Stage 3: flat tensors without their shape, and the step apart from the parameters.
    shapes = _read(source / "zero_pp_rank_0_mp_rank_00_model_states.pt")["param_shapes"]
    for name, shape in (item for group in shapes for item in group.items()):
        folder = target / "zero" / name
        weight, *moments = (_tensor(folder / f"{key}.pt").view(shape) for key in ("fp32", *MOMENTS))
        state = dict(zip(MOMENTS, moments, strict=True))
        _write_parameter(target, name, weight, state, inner["state"][0]["step"])
    return inner["param_groups"]


def _write_parameter(target: Path, name: str, weight: torch.Tensor, state: dict[str, Any], step: Any) -> None:
    folder = target / "zero" / name
    folder.mkdir(parents=True, exist_ok=True)
    for kind, value in {"fp32": weight, **{moment: state[moment] for moment in MOMENTS}}.items():
        torch.save({"cat_dim": 0, "param": value.detach().float().contiguous()}, folder / f"{kind}.pt")
    torch.save(torch.as_tensor(step), folder / "step.pt")


def _write_common(target: Path, groups: list[dict[str, Any]], model_states: dict[str, Any]) -> None:
    """Write the files that stages 1 and 2, and stage 3, need beside the parameters."""
    import deepspeed
    from deepspeed.runtime.fp16.loss_scaler import LossScaler

    any_step = _read(next((target / "zero").glob("*/step.pt")))
    path = target / "zero" / "optimizer_state.pt"
    common = {
        "loss_scaler": LossScaler(scale=1),
        "dynamic_loss_scale": False,
        "overflow": False,
        "clip_grad": model_states["ds_config"]["gradient_clipping"],
        "ds_version": deepspeed.__version__,
        **(_read(path) if path.is_file() else {}),
        "param_groups": groups,
        "optimizer_state_dict": {"state": {0: {"step": any_step}}, "param_groups": groups},
    }
    torch.save(common, path)
    # Weights and moments come from the parameters' folders; here only the counters are read.
    counters = {**model_states, "module": {}, "optimizer": None}
    for name in ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_model_states.pt"):
        torch.save(counters, target / name)


def _read(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=False)  # only ever the run's own files


def _tensor(path: Path) -> torch.Tensor:
    value = _read(path)
    return value["param"] if isinstance(value, dict) else value
