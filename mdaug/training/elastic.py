"""Resume on another number of ranks or another ZeRO stage: each rank reads what it will hold from where it lies.

DeepSpeed's own state is sharded for one number of ranks and one stage. Its way to others is the universal format, files
of whole tensors, three for each parameter: one process writes them from all shards, and every rank reads them all. Here
nothing is converted. The files of the shards are mapped, and a rank reads the elements of its own shards alone, from
the few files that hold them. DeepSpeed's loader of the universal format gets these in the place of its files:

- stage 3 asks the optimizer, stages 1 and 2 ask the parameter (`load_hp_checkpoint_state`), both for whole parameters'
  folders, of which only the name is used;
- stage 0, which has no such loader, is filled here: every rank reads a share and they gather the rest.

What DeepSpeed reads beside the parameters (`optimizer_state.pt`, counters) fits the source's stage only; rank 0 writes
it for all stages into `universal/`. Buffers are not part of it; the task keeps its own (`extra.safetensors`).
"""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.nn import functional

from mdaug import distributed
from mdaug.training import sharded_tensors
from mdaug.training.sharded_tensors import shard_bounds

FOLDER = "universal"
PLAIN = "mp_rank_00_model_states.pt"  # weights and optimizer at stage 0
MOMENTS = ("exp_avg", "exp_avg_sq")  # of AdamW
KEPT = ("loss_scaler", "dynamic_loss_scale", "overflow", "clip_grad", "ds_version")  # of a sharded optimizer


class Place(NamedTuple):
    """Where consecutive elements of a parameter lie."""

    file: int
    """Which file."""
    group: int
    """Which of its tensors."""
    start: int
    """The first element in that tensor."""
    first: int
    """The same element in the flattened parameter."""
    numel: int
    """How many there are."""


class Layout(NamedTuple):
    """Where a checkpoint holds its parameters; small, so that one rank finds out for all.

    Of stage 3 every file holds a shard of each parameter, at the same place; of the other stages the places are listed.
    """

    files: list[str]
    listed: dict[str, list[Place]]
    """Name -> places; empty for stage 3."""
    cut: dict[str, tuple[int, int, int]]
    """Of stage 3 name -> (group, start, elements of the whole parameter)."""
    step: torch.Tensor
    """Steps that AdamW has made."""


class Source:
    """Reads parameters and moments of a checkpoint, whatever ranks and stage have written it.

    Args:
        folder: `engine/` of the checkpoint.
        layout: where things lie in it.
    """

    def __init__(self, folder: Path, layout: Layout):
        self.folder, self.layout = folder, layout
        self._opened: dict[int, dict[str, Any]] = {}

    def read(self, name: str, kind: str, start: int, stop: int) -> torch.Tensor:
        """Return elements [start, stop) of a flattened parameter, fp32 on the CPU.

        Args:
            name: of the parameter.
            kind: "fp32" for the weight, or one of MOMENTS.
            start, stop: which elements.
        """
        parts = [torch.empty(0)]
        for place in self._places(name, start, stop):
            first, after = max(start, place.first), min(stop, place.first + place.numel)
            if first < after:
                tensor = _held(self._file(place.file), place.group, name)[kind]
                begin = place.start + first - place.first
                parts.append(sharded_tensors.elements(tensor, begin, begin + after - first).float())
        return torch.cat(parts)

    def close(self) -> None:
        """Let go of the files."""
        self._opened.clear()

    def _places(self, name: str, start: int, stop: int) -> Iterator[Place]:
        """Yield the places of a parameter, of stage 3 those that hold some of the elements alone."""
        if name not in self.layout.cut:
            yield from self.layout.listed[name]
            return
        group, offset, numel = self.layout.cut[name]
        ranks = len(self.layout.files)
        size = -(-numel // ranks)
        for rank in range(start // size, -(-stop // size)):
            first, after = shard_bounds(numel, rank, ranks)
            yield Place(rank, group, offset, first, after - first)

    def _file(self, number: int) -> dict[str, Any]:
        if number not in self._opened:
            self._opened[number] = _mapped(self.folder / self.layout.files[number])
        return self._opened[number]


def open_source(checkpoint: Path) -> Source:
    """Return what reads a checkpoint, and write what DeepSpeed reads beside the parameters; every rank calls it."""
    source, layout = checkpoint / "engine", None
    if distributed.is_main():
        layout = _layout(source)
        _write_common(checkpoint / FOLDER, source, layout)
    return Source(source, distributed.from_main(layout))


def answer(source: Source, optimizer: Any, stage: int) -> None:
    """Let the loader of a DeepSpeed optimizer of stage 1 to 3 read from a source, in the place of its own files."""
    if stage == 3:
        optimizer.load_hp_checkpoint_state = partial(_shard, source)
        return
    for group in optimizer.bit16_groups:
        for parameter in group:
            parameter.load_hp_checkpoint_state = partial(_load_fragment, source, parameter)


def load_at_stage_0(source: Source, module: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Set fp32 weights and AdamW state of a network that one torch optimizer holds whole; every rank calls it."""
    on_device = optimizer.param_groups[0]["fused"] or optimizer.param_groups[0]["capturable"]
    for name, parameter in module.named_parameters():
        own = shard_bounds(parameter.numel(), distributed.rank(), distributed.world_size())
        # The fused kernel wants the moments to lie in memory as the parameter does.
        state = {moment: torch.empty_like(parameter, requires_grad=False) for moment in MOMENTS}
        for kind, value in {"fp32": parameter.detach(), **state}.items():
            shard = source.read(name, kind, *own).to(parameter.device)
            value.copy_(sharded_tensors.gather(shard, parameter.shape))
        # Where torch keeps the step count depends on the kind of AdamW.
        step = source.layout.step.float().to(parameter.device if on_device else "cpu", copy=True)
        optimizer.state[parameter] = {"step": step, **state}


def place_steps(optimizer: torch.optim.Optimizer) -> None:
    """Keep the step count beside the moments, where a fused kernel reads it; DeepSpeed leaves it on the CPU."""
    for parameter, state in optimizer.state.items():
        state["step"] = state["step"].to(parameter.device, torch.float32, copy=True)


def lay_out_moments(optimizer: torch.optim.Optimizer) -> None:
    """Give AdamW's moments the strides of their weights.

    A checkpoint keeps the strides of the device that wrote it, channels_last on a GPU. The fused kernel of the CPU
    takes moments of another layout without a check, element by element in memory: a scrambled update.
    """
    for parameter, state in optimizer.state.items():
        for moment in MOMENTS:
            if state[moment].stride() != parameter.stride():
                state[moment] = torch.empty_like(parameter, requires_grad=False).copy_(state[moment])


def _shard(source: Source, folder: str, key: str, param: Any = None) -> torch.Tensor:
    """Return this rank's shard of a parameter for stage 3, padded as DeepSpeed holds it."""
    start, stop = shard_bounds(param.ds_numel, distributed.rank(), distributed.world_size())
    size = -(-param.ds_numel // distributed.world_size())
    return functional.pad(source.read(Path(folder).name, key, start, stop), (0, size - (stop - start)))


def _load_fragment(source: Source, parameter: Any, folder: str, *_: Any, **__: Any) -> torch.Tensor:
    """Set the part of a parameter that this rank holds at stages 1 and 2; return the step."""
    mapping, name = parameter._hp_mapping, Path(folder).name
    start = mapping.lp_fragment_address.start
    part = partial(source.read, name, start=start, stop=start + mapping.lp_fragment_address.numel)
    mapping.get_hp_fragment().data.copy_(part(kind="fp32"))
    mapping.optim_fragment = {moment: part(kind=moment) for moment in MOMENTS}
    return source.layout.step


def _layout(source: Path) -> Layout:
    """Find where the parameters lie; of stages 1 and 2 every file tells which parts of which parameters it holds."""
    paths = sorted(source.glob("*_optim_states.pt"), key=_rank_of)
    files = [path.name for path in paths] or [PLAIN]
    first = _mapped(source / files[0])
    listed: dict[str, list[Place]] = {}
    cut: dict[str, tuple[int, int, int]] = {}
    if not paths:
        names = [name for name in first["module"] if name not in set(first["buffer_names"])]
        sizes = [first["module"][name].numel() for name in names]
        listed = {name: [Place(0, i, 0, 0, size)] for i, (name, size) in enumerate(zip(names, sizes, strict=True))}
    elif "fp32_flat_groups" in first["optimizer_state_dict"]:
        for group, shapes in enumerate(_mapped(_model_states(source))["param_shapes"]):
            start = 0
            for name, shape in shapes.items():
                cut[name] = (group, start, math.prod(shape))
                start += -(-math.prod(shape) // len(files))
    else:
        for number, path in enumerate(paths):
            for group, parts in enumerate(_mapped(path)["optimizer_state_dict"]["param_slice_mappings"]):
                for name, part in parts.items():
                    places = listed.setdefault(name, [])
                    places.append(Place(number, group, part.start, sum(place.numel for place in places), part.numel))
    any_name = next(iter(listed or cut))
    return Layout(files, listed, cut, torch.as_tensor(_held(first, 0, any_name)["step"]).clone())


def _held(record: dict[str, Any], group: int, name: str) -> dict[str, Any]:
    """Return {"fp32", "exp_avg", "exp_avg_sq", "step"} of a file: of a parameter at stage 0, else of a flat group."""
    inner = record.get("optimizer_state_dict")
    if inner is None:
        return {"fp32": record["module"][name], **record["optimizer"]["state"][group]}
    if "fp32_flat_groups" in inner:
        return {"fp32": inner["fp32_flat_groups"][group], **inner["optimizer_state_dict"]["state"][group]}
    return {"fp32": inner["single_partition_of_fp32_groups"][group], **inner["base_optimizer_state"]["state"][group]}


def _write_common(target: Path, source: Path, layout: Layout) -> None:
    """Write the files that stages 1 and 2, and stage 3, need beside the parameters."""
    import deepspeed
    from deepspeed.runtime.fp16.loss_scaler import LossScaler

    shutil.rmtree(target, ignore_errors=True)
    (target / "zero").mkdir(parents=True)
    model_states, record = _mapped(_model_states(source)), _mapped(source / layout.files[0])
    inner = record.get("optimizer_state_dict", {})
    optimizer = inner.get("base_optimizer_state") or inner.get("optimizer_state_dict") or record["optimizer"]
    groups = optimizer["param_groups"]
    common = {
        "loss_scaler": LossScaler(scale=1),
        "dynamic_loss_scale": False,
        "overflow": False,
        "clip_grad": model_states["ds_config"]["gradient_clipping"],
        "ds_version": deepspeed.__version__,
        **{key: inner[key] for key in KEPT if key in inner},
        "param_groups": groups,
        "optimizer_state_dict": {"state": {0: {"step": layout.step}}, "param_groups": groups},
    }
    torch.save(common, target / "zero" / "optimizer_state.pt")
    # Weights and moments come from the source; here only the counters are read.
    counters = {**model_states, "module": {}, "optimizer": None}
    for name in (PLAIN, f"zero_pp_rank_0_{PLAIN}"):
        torch.save(counters, target / name)


def _model_states(source: Path) -> Path:
    """Return the file with the counters of rank 0."""
    return min(source.glob("*model_states.pt"), key=_rank_of)


def _rank_of(path: Path) -> int:
    """Return the rank that wrote a file; 0 for the one file of all ranks."""
    found = re.search(r"zero_pp_rank_(\d+)_", path.name)
    return int(found[1]) if found else 0


def _mapped(path: Path) -> Any:
    """Return the content of a file, its tensors mapped: what is not used is not read. Only ever the run's own files."""
    return torch.load(path, map_location="cpu", mmap=True, weights_only=False)
