"""The DeepSpeed configuration of a run: a JSON of ours or of the user, filled in from the flags and checked with them.

A user's JSON may not contradict the flags, nor hold sections that would have no effect. Everything else is DeepSpeed's
to check.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mdaug import distributed
from mdaug.training.batches import BatchPlan, accumulation
from mdaug.training.options import TrainingConfig
from shards.errors import UserError

CONFIGS = Path(__file__).resolve().parents[2] / "deepspeed_configs"
ADAM_EPS = 1e-8  # added to the root of the second moment
PRECISIONS = ("no", "bf16", "fp16")
SECTIONS = ("zero_optimization", "optimizer", "fp16", "bf16", "torch_autocast")
PLAIN = {  # further keys that take effect: reports, logs, and what changes nothing of the result
    "communication_data_type", "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer", "gradient_allreduce_op",
    "gradient_predivide_factor", "steps_per_print", "wall_clock_breakdown", "memory_breakdown", "dump_state",
    "log_level", "flops_profiler", "comms_logger", "tensorboard", "csv_monitor", "wandb", "comet",
}  # fmt: skip
INSTEAD = {  # the flags that do what a section without effect was meant for
    "activation_checkpointing": "a smaller --batch_size with the same --global_batch_size saves memory",
    "checkpoint": "see --save_epochs and --keep_last",
    "compile": "use --compile",
    "elasticity": "--global_batch_size is the same on any number of ranks",
    "scheduler": "the learning rate follows --lr and the command's own schedule",
}
# Settings that DeepSpeed accepts and that silently change the result: gradients of another scale; no norm, so that
# steps whose gradient is not finite are applied; a run resumed from rounded weights.
FIXED: dict[str, tuple[Any, str]] = {
    "gradient_allreduce_op": ("mean", "gradients are averaged over the ranks"),
    "zero_optimization.compute_grad_norm": (True, "the norm shows steps whose gradient is not finite"),
    "zero_optimization.load_from_fp32_weights": (True, "a run resumes from its fp32 master weights"),
}
SAME_ADAMW = {"torch_adam", "fused", "foreach"}  # how torch's AdamW is computed


def deepspeed_config(config: TrainingConfig, plan: BatchPlan, precision: str) -> dict[str, Any]:
    """Return the DeepSpeed configuration of the run, every "auto" filled in or left to DeepSpeed's default.

    Raises UserError if a DeepSpeed JSON of the user contradicts the flags, naming both values.
    """
    return _filled(config, precision, (plan.global_batch, plan.micro_batch, plan.accumulation))


def check(config: TrainingConfig, ranks: int, precision: str | None = None) -> None:
    """Refuse a DeepSpeed JSON as `deepspeed_config` would, before any data are read.

    A micro batch of "auto" is not compared yet. Without `precision` ("no", "bf16" or "fp16") any one that
    mixed_precision allows will do: when a job is submitted, its GPUs are not known.
    """
    passes = accumulation(config, ranks)
    micro = None if config.batch_size == "auto" else config.batch_size
    batch = (micro and micro * ranks * passes, micro, passes)
    if precision is None and config.mixed_precision != "auto":
        precision = config.mixed_precision
    refused = []
    for possible in PRECISIONS if precision is None else (precision,):
        try:
            _filled(config, possible, batch)
            return
        except UserError as error:
            refused.append(error)
    raise refused[0]


def zero_stage(settings: Mapping[str, Any]) -> int:
    """Return the ZeRO stage of a DeepSpeed configuration."""
    return settings.get("zero_optimization", {}).get("stage", 0)


def stage_of(config: TrainingConfig) -> int:
    """Return the ZeRO stage of a run: that of its own DeepSpeed JSON, else the flag's."""
    return config.zero_stage if config.deepspeed_config is None else zero_stage(_read(config.deepspeed_config, config))


def _filled(config: TrainingConfig, precision: str, batch: tuple[int | None, int | None, int]) -> dict[str, Any]:
    path = config.deepspeed_config or CONFIGS / f"zero{config.zero_stage}.json"
    settings = _read(path, config)
    from_flags = {
        "train_batch_size": ("global batch", batch[0]),
        "train_micro_batch_size_per_gpu": ("batch_size", batch[1]),
        "gradient_accumulation_steps": ("accumulation", batch[2]),
        "gradient_clipping": ("max_grad_norm", config.max_grad_norm),
    }
    for key, (name, value) in from_flags.items():
        if value is not None:
            _require_equal(path, key, settings.get(key), name, value)
            settings[key] = value
    _refuse_unused_sections(path, settings, {*from_flags, *SECTIONS, *PLAIN})
    _check_zero(path, settings, config)
    _fill_precision(path, settings, precision)
    for key, (value, why) in FIXED.items():
        if (given := _at(settings, key)) not in (None, "auto", value):
            raise UserError(f'{path}: "{key}" is {given}, but must be {value} here: {why}; remove it or agree')
    _check_optimizer(path, settings.pop("optimizer", {}), config)  # made here; DeepSpeed would ignore the section
    settings.setdefault("zero_force_ds_cpu_optimizer", False)  # else offload refuses torch's AdamW
    settings = _without_auto(settings)
    if config.deepspeed_config is not None:
        _validate_with_deepspeed(path, settings)
    return settings


def _read(path: Path, config: TrainingConfig) -> dict[str, Any]:
    """Return what the file holds, its sections of the right kind and its ZeRO stage a number."""
    if not path.is_file():
        raise UserError(f"--deepspeed_config {path} is not a file; name one such as deepspeed_configs/zero2.json")
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"--deepspeed_config {path} is not JSON: {error}") from None
    if not isinstance(settings, dict):
        raise UserError(f"--deepspeed_config {path} does not hold a JSON object {{...}}")
    for name in SECTIONS:
        if not isinstance(settings.get(name, {}), dict):
            raise UserError(f'{path}: "{name}" is {settings[name]}, but it is a section {{...}}')
    zero = settings.get("zero_optimization", {})
    if zero.get("stage") == "auto":
        zero["stage"] = config.zero_stage
    if not isinstance(zero.get("stage", 0), int):
        raise UserError(f'{path}: "zero_optimization.stage" is {zero["stage"]!r}, but it is a number from 0 to 3')
    return settings


def _at(settings: Any, key: str) -> Any:
    """Return the value at a key with dots, None where there is none."""
    for name in key.split("."):
        settings = settings.get(name) if isinstance(settings, dict) else None
    return settings


def _require_equal(path: Path, key: str, given: Any, name: str, value: Any) -> None:
    if given not in (None, "auto", value):
        raise UserError(f'{path}: "{key}" is {given}, but {name} is {value}; set it to "auto" or agree')


def _refuse_unused_sections(path: Path, settings: dict[str, Any], known: set[str]) -> None:
    """Refuse sections that would have no effect; drop those that are switched off anyway."""
    for name in settings.keys() - known:
        if not _off(settings[name]):
            instead = f" ({INSTEAD[name]})" if name in INSTEAD else ""
            raise UserError(
                f'{path}: "{name}" is {json.dumps(settings[name])}, but has no effect here{instead}; remove it'
            )
        del settings[name]


def _off(value: Any) -> bool:
    if isinstance(value, dict):
        return _off(value["enabled"]) if "enabled" in value else all(map(_off, value.values()))
    return not value or value == "auto"


def _check_optimizer(path: Path, section: dict[str, Any], config: TrainingConfig) -> None:
    _require_equal(path, "optimizer.type", section.get("type"), "the optimizer", "AdamW")
    own: dict[str, tuple[str, Any]] = {
        "lr": ("lr", config.lr),
        "betas": ("adam_betas", list(config.adam_betas)),
        "weight_decay": ("weight_decay", config.weight_decay),
        "eps": ("AdamW's eps", ADAM_EPS),
        "adam_w_mode": ("that of AdamW", True),
        "bias_correction": ("that of AdamW", True),
        "amsgrad": ("that of AdamW", False),
    }
    params = section.get("params", {})
    for key, (name, value) in own.items():
        _require_equal(path, f"optimizer.params.{key}", params.get(key), name, value)
    unknown = {key: section[key] for key in section.keys() - {"type", "params"}}
    unknown |= {f"params.{key}": params[key] for key in params.keys() - own.keys() - SAME_ADAMW}
    for key, value in unknown.items():
        if not _off(value):
            raise UserError(f'{path}: "optimizer.{key}" is {value}, but the optimizer is torch\'s AdamW; remove it')


def _check_zero(path: Path, settings: dict[str, Any], config: TrainingConfig) -> None:
    stage = zero_stage(settings)
    if config.zero_stage:  # 0, the default, leaves the choice to the JSON
        _require_equal(path, "zero_optimization.stage", stage, "zero_stage", config.zero_stage)
    if stage == 3 and getattr(config, "compile", False):
        raise UserError(f'{path}: "zero_optimization.stage" is 3, but compile is True; use stage 2 or leave it out')
    for name, least in (("offload_optimizer", 1), ("offload_param", 3)):
        device = _at(settings, f"zero_optimization.{name}.device")
        if _off(device) or device == "none":
            continue
        if device != "cpu":
            raise UserError(
                f'{path}: "zero_optimization.{name}.device" is {device}, but only cpu is supported: another one needs '
                "an op that DeepSpeed would compile at the start"
            )
        if stage < least:
            raise UserError(
                f'{path}: "zero_optimization.{name}" is on, but "zero_optimization.stage" is {stage}, which offloads '
                f"nothing; use stage {least} or more, or remove it"
            )


def _fill_precision(path: Path, settings: dict[str, Any], precision: str) -> None:
    """Fill "enabled": "auto", refuse another precision than the flag's, and bring it into the form that works.

    bf16 is torch_autocast over fp32 weights; so is fp16 at stage 0. At stages 1 to 3 fp16 is DeepSpeed's own section,
    since DeepSpeed clips the gradients of autocast there before they are unscaled.
    """
    stage, autocast = zero_stage(settings), settings.pop("torch_autocast", {})
    fp16, bf16 = settings.pop("fp16", {}), settings.pop("bf16", {})
    if autocast.get("dtype") == "auto":
        autocast["dtype"] = "float16" if precision == "fp16" else "bfloat16"
    dtype = str(autocast.get("dtype", "bfloat16")).removeprefix("torch.")
    by_autocast = {"float16": "fp16", "bfloat16": "bf16"}.get(dtype, dtype)
    on = set()
    for name, section in (("fp16", fp16), ("bf16", bf16), (by_autocast, autocast)):
        if section.get("enabled") == "auto":
            section["enabled"] = name == precision
        if section.get("enabled"):
            on.add(name)
    if on != {precision} - {"no"}:
        enabled = " and ".join(sorted(on)) or "neither bf16 nor fp16"
        raise UserError(f"{path} switches {enabled} on, but mixed_precision is {precision}; make them agree")
    sums = settings.get("communication_data_type")
    if sums not in (None, "auto", "fp32", precision):
        raise UserError(
            f'{path}: "communication_data_type" is {sums}, but mixed_precision is {precision}; '
            "use fp32, or the same as mixed_precision"
        )
    if precision == "fp16" and stage > 0:
        if autocast.get("enabled"):
            raise UserError(
                f'{path} switches fp16 on by "torch_autocast", but "zero_optimization.stage" is {stage}, where only '
                f'the section "fp16" works; take that section from deepspeed_configs/zero{stage}.json'
            )
        settings["fp16"] = {**fp16, "auto_cast": True if fp16.get("auto_cast") in (None, "auto") else fp16["auto_cast"]}
    elif precision != "no":
        for key, value in {"bf16": bf16, "fp16": fp16}[precision].items():
            if key not in ("enabled", "auto_cast") and not _off(value):
                raise UserError(
                    f'{path}: "{precision}.{key}" is {value}, but {precision} is torch_autocast over fp32 weights; '
                    "remove it"
                )
        settings["torch_autocast"] = {
            **autocast,
            "enabled": True,
            "dtype": "float16" if precision == "fp16" else "bfloat16",
        }


def _without_auto(settings: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _without_auto(value) if isinstance(value, dict) else value
        for key, value in settings.items()
        if value != "auto"
    }


def _validate_with_deepspeed(path: Path, settings: dict[str, Any]) -> None:
    """Report what DeepSpeed itself refuses, such as a misspelt key, in one line."""
    distributed.import_deepspeed()
    from deepspeed.runtime.config import DeepSpeedConfig  # after the line above, which prepares its environment

    try:  # without the global batch: the number of ranks is known to the flags, not yet to DeepSpeed
        DeepSpeedConfig({key: value for key, value in settings.items() if key != "train_batch_size"})
    except Exception as error:
        message = " ".join(str(error).split()).partition(" [type=")[0]
        raise UserError(f"{path}: DeepSpeed refuses it: {message}") from None
