"""A DeepSpeed JSON of the user works as it stands, or is refused with both values before anything is queued or read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launch import slurm_query
from launch.__main__ import main
from mdaug.training.batches import BatchPlan
from mdaug.training.deepspeed_json import CONFIGS, check, deepspeed_config
from mdaug.training.options_vqvae import VQVAEConfig
from mdaug.training.train_vqvae import run as train_vqvae
from shards.errors import UserError

from .shards_helpers import numbered_folder

PLAN = BatchPlan(
    global_batch=8, micro_batch=2, ranks=1, accumulation=4, steps=10, num_samples=80, val_every=80, save_every=80
)


def options(json_file: Path | None = None, **changes) -> VQVAEConfig:
    flags = {"data_dir": Path("data"), "output_dir": Path("out"), "deepspeed_config": json_file}
    return VQVAEConfig(**{**flags, "batch_size": 2, "global_batch_size": 8, **changes})


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_shipped_configurations_are_filled(stage, precision):
    settings = deepspeed_config(options(zero_stage=stage), PLAN, precision)
    assert settings["train_batch_size"] == 8
    assert settings["gradient_accumulation_steps"] == 4
    assert settings["gradient_clipping"] == 1.0
    assert settings["zero_optimization"]["stage"] == stage
    assert "auto" not in json.dumps(settings).replace("auto_cast", "").replace("autocast", "")


CPU, ON = {"device": "cpu"}, {"enabled": True}
REFUSED = [
    # the batch and the step
    ({"train_batch_size": 16}, "no", '"train_batch_size" is 16, but global batch is 8'),
    ({"train_micro_batch_size_per_gpu": 5}, "no", '"train_micro_batch_size_per_gpu" is 5, but batch_size is 2'),
    ({"gradient_accumulation_steps": 1}, "no", '"gradient_accumulation_steps" is 1, but accumulation is 4'),
    ({"gradient_clipping": 0.5}, "no", '"gradient_clipping" is 0.5, but max_grad_norm is 1.0'),
    ({"gradient_allreduce_op": "sum"}, "no", '"gradient_allreduce_op" is sum, but must be mean here'),
    # optimizer and learning rate
    ({"optimizer": {"type": "SGD"}}, "no", '"optimizer.type" is SGD, but the optimizer is AdamW'),
    ({"optimizer": {"params": {"lr": 1e-3}}}, "no", '"optimizer.params.lr" is 0.001, but lr is 5e-05'),
    ({"optimizer": {"params": {"betas": [0.9, 0.95]}}}, "no", r"0.95\], but adam_betas is \[0.9, 0.999\]"),
    ({"optimizer": {"params": {"weight_decay": 0}}}, "no", "is 0, but weight_decay is 0.01"),
    ({"optimizer": {"params": {"eps": 1e-6}}}, "no", "is 1e-06, but AdamW's eps is 1e-08"),
    ({"optimizer": {"params": {"adam_w_mode": False}}}, "no", 'adam_w_mode" is False, but that of AdamW is True'),
    ({"optimizer": {"params": {"momentum": 0.9}}}, "no", "momentum\" is 0.9, but the optimizer is torch's AdamW"),
    ({"scheduler": {"type": "WarmupLR"}}, "no", '"scheduler" is .*WarmupLR.*, but has no effect .*--lr'),
    # precision
    ({"bf16": ON}, "no", "switches bf16 on, but mixed_precision is no"),
    ({"fp16": ON}, "bf16", "switches fp16 on, but mixed_precision is bf16"),
    ({"bf16": ON, "fp16": ON}, "fp16", "switches bf16 and fp16 on, but mixed_precision is fp16"),
    ({"torch_autocast": {**ON, "dtype": "float16"}}, "bf16", "switches fp16 on, but mixed_precision is bf16"),
    ({}, "bf16", "switches neither bf16 nor fp16 on, but mixed_precision is bf16"),
    ({"torch_autocast": {**ON, "dtype": "float16"}}, "fp16", 'by "torch_autocast", but "zero_optimization.stage" is 1'),
    (
        {"fp16": {**ON, "loss_scale": 8}, "zero_optimization": {"stage": 0}},
        "fp16",
        '"fp16.loss_scale" is 8, but fp16 is',
    ),
    ({"bf16": {**ON, "immediate_grad_update": True}}, "bf16", '"bf16.immediate_grad_update" is True, but bf16 is'),
    ({"communication_data_type": "fp16"}, "no", '"communication_data_type" is fp16, but mixed_precision is no'),
    # ZeRO
    ({"zero_optimization": {"stage": 2}}, "no", '"zero_optimization.stage" is 2, but zero_stage is 1'),
    ({"zero_optimization": {"stage": 0, "offload_optimizer": CPU}}, "no", 'offload_optimizer" is on, but .* is 0'),
    ({"zero_optimization": {"stage": 1, "offload_param": CPU}}, "no", 'offload_param" is on, but .* is 1'),
    ({"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}}, "no", "is nvme, but only cpu"),
    (
        {"zero_optimization": {"stage": 1, "compute_grad_norm": False}},
        "no",
        "is False, but must be True here: the norm",
    ),
    # what would have no effect
    (
        {"activation_checkpointing": {"partition_activations": True}},
        "no",
        '"activation_checkpointing" is .*--batch_size',
    ),
    (
        {"compression_training": {"weight_quantization": {"shared_parameters": ON}}},
        "no",
        "has no effect here; remove it",
    ),
    ({"timers": {"throughput": ON}}, "no", '"timers" is .*waits for the device'),
    ({"pipeline": {"stages": 2}}, "no", '"pipeline" is {"stages": 2}, but has no effect here; remove it'),
    ({"elasticity": ON}, "no", '"elasticity" is .*--global_batch_size'),
    ({"checkpoint": {"load_universal": True}}, "no", '"checkpoint" is .*--save_epochs'),
    ({"compile": {"deepcompile": True}}, "no", '"compile" is .*use --compile'),
    ({"gradient_cliping": 1.0}, "no", '"gradient_cliping" is 1.0, but has no effect here; remove it'),
    # what DeepSpeed would refuse with a traceback, after the data
    ({"zero_optimization": {"stage": 1, "overlap_com": True}}, "no", "DeepSpeed refuses it: .* overlap_com Extra"),
    ({"zero_optimization": {"stage": 5}}, "no", "DeepSpeed refuses it: .* stage Input should be 0, 1, 2"),
    ({"zero_optimization": {"stage": "2"}}, "no", """stage" is '2', but it is a number from 0 to 3"""),
    ({"zero_optimization": True}, "no", '"zero_optimization" is True, but it is a section'),
]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_section_of_either_kind_is_torch_autocast_at_stage_0(tmp_path, precision):
    (tmp_path / "own.json").write_text(json.dumps({precision: ON}))
    filled = deepspeed_config(options(tmp_path / "own.json"), PLAN, precision)
    assert filled["torch_autocast"] == {"enabled": True, "dtype": {"bf16": "bfloat16", "fp16": "float16"}[precision]}
    assert not filled.keys() & {"bf16", "fp16"}


def test_a_file_name_of_earlier_versions_is_answered_with_the_new_one():
    for old, new in (("zero2_bf16", "zero2"), ("zero3_offload_fp32", "zero3_offload")):
        with pytest.raises(ValueError, match=rf"deepspeed_configs/{new}.json with --mixed_precision"):
            options(Path(f"deepspeed_configs/{old}.json"))


@pytest.mark.parametrize(("changes", "precision", "message"), REFUSED)
def test_what_contradicts_the_flags_or_does_nothing_is_refused_with_both_values(tmp_path, changes, precision, message):
    path = tmp_path / "own.json"
    shipped = json.loads((CONFIGS / "zero1.json").read_text())
    fp32 = {name: value for name, value in shipped.items() if name not in ("bf16", "fp16")}
    path.write_text(json.dumps({**fp32, **changes}))
    zero = changes.get("zero_optimization")
    config = options(path, zero_stage=0 if zero and zero != {"stage": 2} else 1, mixed_precision=precision)
    for refuse in (
        lambda: check(config, 1, precision),  # before the data
        lambda: check(config, 1),  # before the queue, where the GPUs are not known
        lambda: deepspeed_config(config, PLAN, precision),
    ):
        with pytest.raises(UserError, match=message) as refused:
            refuse()
        assert str(path) in str(refused.value)


AUTO = {"enabled": "auto"}
ACCEPTED = [
    ({"optimizer": {"type": "AdamW", "params": {"lr": "auto", "eps": 1e-8, "torch_adam": True}}}, {}),
    ({"bf16": AUTO, "fp16": AUTO}, {}),
    ({"zero_optimization": {"stage": "auto"}}, {"zero_optimization": {"stage": 0}}),
    ({"prescale_gradients": False, "gradient_predivide_factor": 2.0}, {"gradient_predivide_factor": 2.0}),
    ({"amp": {"enabled": False}, "sparse_gradients": False, "autotuning": {"enabled": False}}, {}),
    ({"activation_checkpointing": {"partition_activations": False, "number_checkpoints": None}}, {}),
    ({"communication_data_type": "fp32"}, {"communication_data_type": "fp32"}),
    ({"steps_per_print": 10, "wall_clock_breakdown": True}, {"steps_per_print": 10, "wall_clock_breakdown": True}),
    ({"fp16": {"enabled": False, "auto_cast": False, "loss_scale": 0}}, {}),
]


@pytest.mark.parametrize(("changes", "left"), ACCEPTED)
def test_what_agrees_or_is_switched_off_anyway_is_accepted(tmp_path, changes, left):
    path = tmp_path / "own.json"
    path.write_text(json.dumps(changes))
    filled = deepspeed_config(options(path), PLAN, "no")
    assert filled == {**deepspeed_config(options(own_empty(tmp_path)), PLAN, "no"), **left}


def own_empty(folder: Path) -> Path:
    path = folder / "empty.json"
    path.write_text("{}")
    return path


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_auto_follows_the_flags(tmp_path, precision):
    """Of bf16 in either form becomes the form of the shipped files: autocast over fp32 weights."""
    own = {
        "fp16": {"enabled": "auto", "loss_scale": 0},
        "bf16": {"enabled": "auto"},
        "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": "auto", "eps": 1e-8, "weight_decay": 0.01}},
        "zero_optimization": {"stage": 2, "reduce_bucket_size": "auto"},
        "train_batch_size": "auto",
    }
    (tmp_path / "own.json").write_text(json.dumps(own))
    low = {
        "no": {},
        "bf16": {"torch_autocast": {"enabled": True, "dtype": "bfloat16"}},
        "fp16": {"fp16": {"enabled": True, "loss_scale": 0, "auto_cast": True}},
    }
    assert deepspeed_config(options(tmp_path / "own.json"), PLAN, precision) == {
        **low[precision],
        "zero_optimization": {"stage": 2},
        "train_batch_size": 8,
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": 4,
        "gradient_clipping": 1.0,
        "zero_force_ds_cpu_optimizer": False,
        "timers": {"throughput": {"enabled": False}},  # whose answers wait for the device
    }


@pytest.mark.parametrize(
    ("text", "message"), [("{'a': 1}", "is not JSON: .* line 1"), ("[]", "does not hold a JSON object")]
)
def test_what_is_not_json_is_refused_by_name(tmp_path, text, message):
    (tmp_path / "own.json").write_text(text)
    with pytest.raises(UserError, match=rf"own.json {message}"):
        check(options(tmp_path / "own.json"), 1)


def test_a_job_is_not_queued_and_no_image_is_read_with_a_json_that_contradicts_the_flags(tmp_path, monkeypatch, capsys):
    path, run = tmp_path / "own.json", tmp_path / "run"
    path.write_text(json.dumps({"bf16": ON, "gradient_clipping": 0.5}))
    monkeypatch.setattr(slurm_query, "available", lambda: False)
    images = numbered_folder(tmp_path / "images", {"a": [0, 1], "b": [2, 3]})
    flags = ["--data_dir", str(images), "--output_dir", str(run), "--deepspeed_config", str(path)]
    assert main(["train-vqvae", "--cluster", "slurm", "--dry_run", "--", *flags]) == 2
    message = f'{path}: "gradient_clipping" is 0.5, but max_grad_norm is 1.0'
    assert message in capsys.readouterr().err
    assert main(["train-vqvae", "--cluster", "slurm", "--dry_run", "--", *flags, "--max_grad_norm", "0.5"]) == 0
    monkeypatch.setattr("mdaug.distributed.init", lambda: None)
    with pytest.raises(UserError, match=r"\"gradient_clipping\" is 0.5, but max_grad_norm is 1.0"):
        train_vqvae(options(path, data_dir=tmp_path / "absent", output_dir=run, mixed_precision="bf16"))
    assert not run.exists()
