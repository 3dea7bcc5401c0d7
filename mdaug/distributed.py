"""Ranks, the device and its precision, and the process group. One process drives one device."""

from __future__ import annotations

import atexit
import functools
import importlib
import logging
import os
import pickle
import shutil
import sysconfig
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from torch.distributed import distributed_c10d

from shards.errors import UserError
from shards.validation import WORKER, WORKERS

DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# A collective that waits longer than this has lost a rank; torch's own default (30 min) hides it.
COLLECTIVE_TIMEOUT = timedelta(minutes=10)
# Until all ranks are there: hundreds of processes that import torch from one file server take long.
START_TIMEOUT = timedelta(minutes=30)
SHORTEST_LOOK_S, LONGEST_LOOK_S = 0.001, 0.5  # between two looks for ranks that work apart
MEETING = ("RANK", "MASTER_ADDR", "MASTER_PORT")  # what more than one rank needs
_meetings = 0  # of the ranks, at the store


def rank() -> int:
    """Return this process's number in [0, world_size)."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Return the number of processes of this run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """Return this process's number on its machine, which is also the number of its device."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def is_main() -> bool:
    """Return whether this process logs and writes the files that exist once."""
    return rank() == 0


def device() -> torch.device:
    """Return this rank's device: its GPU, which "cuda" then means here, or the CPU where there is none.

    Raises UserError where a GPU is there that this torch cannot use.
    """
    require_usable_gpu()
    if not torch.cuda.is_available():
        return torch.device("cpu")
    # Attention here is over 4 to 64 tokens: cuDNN's gains nothing and makes a plan for every size of batch.
    torch.backends.cuda.enable_cudnn_sdp(False)
    torch.cuda.set_device(local_rank())  # else events and new tensors of all ranks land on the first GPU
    return torch.device("cuda", local_rank())


def gpu() -> str | None:
    """Return the model of this rank's GPU and the version of torch, by which results differ; None on a CPU."""
    if not torch.cuda.is_available():
        return None
    return f"{torch.cuda.get_device_name(local_rank())}, torch {torch.__version__}"


@functools.cache
def require_usable_gpu() -> None:
    """Raise UserError where this machine has a GPU and torch has none: an old driver, or a card older than the wheel.

    Without it a run would compute on the CPU, hours later noticed. CUDA_VISIBLE_DEVICES= chooses the CPU.
    """
    if not torch.cuda.is_available():
        if torch.version.cuda and torch.cuda.device_count() > 0:  # counted by the driver's library, without CUDA
            raise UserError(
                f"this machine has a GPU, but its driver is too old for torch {torch.__version__} (CUDA "
                f"{torch.version.cuda}); update the driver, or install torch for the CUDA version that nvidia-smi "
                "shows; CUDA_VISIBLE_DEVICES= computes on the CPU"
            )
        return
    major, minor = torch.cuda.get_device_capability(local_rank())
    built = [int(name.removeprefix("sm_")) for name in torch.cuda.get_arch_list() if name.startswith("sm_")]
    if built and 10 * major + minor < min(built):
        raise UserError(
            f"{torch.cuda.get_device_name(local_rank())} is of compute capability {major}.{minor}, but torch "
            f"{torch.__version__} is built for {min(built) // 10}.{min(built) % 10} and newer; install a torch before "
            "2.15 for CUDA 12.6, or take another card"
        )


def memory_format() -> torch.memory_format:
    """Return the layout of cuDNN's fastest convolutions on a GPU, where the norms of this torch know it, too.

    Before 2.15 every GroupNorm on CUDA copied its input into the other layout, which cost more than the convolutions
    gained. On a CPU it gains nothing.
    """
    fast = torch.cuda.is_available() and tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 15)
    return torch.channels_last if fast else torch.contiguous_format


def require_gpu_for_fp16(precision: str, kind: str) -> None:
    """Raise UserError for mixed_precision "fp16" on the kind of device "cpu"."""
    if precision == "fp16" and kind == "cpu":
        raise UserError("mixed_precision=fp16 needs a GPU, and there is none; use bf16 or no")


def require_compiler() -> None:
    """Raise UserError where torch.compile would end in a long error for want of a C compiler or Python's headers."""
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        raise UserError("--compile needs a C compiler, and there is neither gcc nor clang; install one or leave it out")
    if not header.is_file():
        raise UserError(
            f"--compile needs {header}, which is missing; install the headers of this Python (python3-dev or "
            "python3-devel), or leave it out"
        )


def autocast(precision: str, on: torch.device | str) -> torch.autocast:
    """Return a context in which a device computes in a precision of DTYPES; "no" is fp32."""
    return torch.autocast(torch.device(on).type, DTYPES[precision], enabled=precision != "no")


def init() -> torch.device:
    """Join the process group (NCCL on GPUs, gloo on CPU) through DeepSpeed and return this rank's device.

    Works alone too: one process without any environment variable is a group of one.
    """
    if world_size() > 1 and (absent := [name for name in MEETING if name not in os.environ]):
        raise UserError(
            f"WORLD_SIZE={world_size()} is in the environment, but {absent[0]} is not, so its ranks cannot meet; start "
            "them by python -m launch or torchrun, or unset WORLD_SIZE and RANK for one process"
        )
    os.environ.setdefault("RANK", "0")
    os.environ.setdefault("WORLD_SIZE", "1")
    os.environ.setdefault("LOCAL_RANK", "0")
    if world_size() == 1:
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        os.environ.setdefault("MASTER_PORT", "0")  # port 0: the store binds a free one
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    require_usable_gpu()
    deepspeed = import_deepspeed()
    if not torch.distributed.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(local_rank())
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        torch.distributed.init_process_group(backend, timeout=START_TIMEOUT)
        barrier()
        _set_timeout(COLLECTIVE_TIMEOUT)
        deepspeed.init_distributed(dist_backend=backend, verbose=False)
        atexit.register(_leave)
    return device()


def be_alone() -> None:
    """Make this process a group of its own, whatever ranks or workers it is one of: it does a whole piece of work."""
    for name in (WORKER, WORKERS):
        os.environ.pop(name, None)
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}


def import_deepspeed():
    """Import deepspeed quietly and without its run-time compiled ops; the environment must be set first.

    On CPU DeepSpeed compiles a shared-memory collective at its first start: that needs g++ and ninja, takes up to
    minutes, and a process killed meanwhile leaves a lock on which every later start waits for ever. gloo alone does the
    same work, so the op is not built.
    """
    os.environ.setdefault("DS_SKIP_CUDA_CHECK", "1")
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    import deepspeed
    from deepspeed.utils import logger

    logger.setLevel(logging.ERROR)
    # By name: the attribute deepspeed.comm.torch is torch itself, not this module.
    importlib.import_module("deepspeed.comm.torch").build_shm_op = lambda: None  # type: ignore[attr-defined]
    return deepspeed


def barrier() -> None:
    """Wait until every rank is here."""
    if world_size() > 1:
        torch.distributed.barrier()


def wait_for_work() -> None:
    """Wait until every rank is here, after work that may take one rank much longer than the others."""
    from_main(None)


def from_main(value: Any) -> Any:
    """Return what rank 0 passes, on every rank, once all are here; they wait for each other as long as it takes.

    They meet at the store of the process group, a server in rank 0 that knows all ranks already: another group for this
    would connect each rank with each other one. Rank 0, with the server, leaves last. A rank that dies is noticed by
    what started it, which stops the others.
    """
    if world_size() == 1:
        return value
    global _meetings
    _meetings += 1
    store, key = distributed_c10d._get_default_store(), f"mdaug/{_meetings}"
    if is_main():
        store.set(key, pickle.dumps(value).hex())
    _until_all(store, f"{key}/here")
    value = pickle.loads(bytes.fromhex(store.get(key).decode()))
    store.add(f"{key}/gone", 1)
    if is_main():
        _until_all(store, f"{key}/gone", 0)
    return value


def _until_all(store: Any, counter: str, own: int = 1) -> None:
    """Add `own` to a counter and wait until every rank has; signals are heard meanwhile."""
    pause = SHORTEST_LOOK_S
    while store.add(counter, own) < world_size():
        own = 0
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_LOOK_S)


def _set_timeout(timeout: timedelta) -> None:
    """Let the collectives of the process group wait so long from now on."""
    change = getattr(torch.distributed, "set_timeout", None) or distributed_c10d._set_pg_timeout  # before torch 2.15
    change(timeout)


def _leave() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def sum_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """Return the sum of `tensor` over all ranks (in place)."""
    if world_size() > 1:
        torch.distributed.all_reduce(tensor)
    return tensor


def gather_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensors of all ranks, equal in shape, concatenated along the first axis in rank order."""
    if world_size() == 1:
        return tensor
    parts = [torch.empty_like(tensor) for _ in range(world_size())]
    torch.distributed.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


def from_main_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor of rank 0 on every rank (in place): nodes of different processors round otherwise."""
    if world_size() > 1:
        torch.distributed.broadcast(tensor, 0)
    return tensor


def any_rank(flag: bool, on: torch.device) -> bool:
    """Return whether any rank raised its flag, the same answer on all ranks."""
    return bool(sum_over_ranks(torch.tensor(float(flag), device=on)).item() > 0)
