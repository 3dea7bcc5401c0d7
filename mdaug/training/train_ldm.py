"""`mdaug train-ldm`: options and assembly of the run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from mdaug.pipeline import schedulers
from mdaug.training.ema import WIDEST
from mdaug.training.run_folder import TrainingConfig


@dataclass
class LDMConfig(TrainingConfig):
    """Train the class-conditional latent diffusion model on the latents of a VQ-VAE."""

    vqvae_path: Path | None = None
    """VQ-VAE: the run folder of train-vqvae (its best/) or a diffusers folder. Required."""
    latents_dir: Path | None = None
    """Latent shards of `mdaug encode`; default <output_dir>/latents. Made now if they are not there."""
    latent_channels: int = 4
    """Channels of a latent; must be those of the VQ-VAE."""
    block_out_channels: tuple[int, ...] = (256, 512, 768, 1024)
    """Channels of the U-Net's levels, fine to coarse."""
    layers_per_block: int = 2
    """Residual layers per level."""
    num_heads: int = 16
    """Attention heads at every level."""
    window_size: int = 8
    """Side of the attention windows in latent pixels."""
    attention: str = "hybrid"
    """hybrid: windows in the first half of the levels, axes in the second half. Or full, none, window or axial: one for
    all levels, or one for each from fine to coarse, such as none,none,axial,full."""
    norm_num_groups: int = 32
    """Groups of the U-Net's normalisation layers; must divide every level's channels."""
    dropout: float = 0.0
    """Dropout in the residual layers."""
    prediction_type: Literal["epsilon", "v_prediction", "sample", "flow_matching"] = "v_prediction"
    """What the network predicts: noise, v, the latent, or the velocity noise - latent of flow matching."""
    beta_schedule: Literal["linear", "cosine", "squaredcos_cap_v2"] | None = None
    """Noise schedule (default squaredcos_cap_v2, also called cosine); flow matching has none."""
    rescale_betas_zero_snr: bool = False
    """End the noise schedule in pure noise; sampling then starts there. For v_prediction and sample."""
    min_snr_gamma: float | None = None
    """Weigh a timestep by min(SNR, gamma), in terms of the latent; 5 is usual. Default: all timesteps alike."""
    timestep_sampling: Literal["uniform", "logit_normal"] = "uniform"
    """How often a timestep is trained; logit_normal favours the middle."""
    logit_mean: float = 0.0
    """Mean of log(t / (1 - t)) of logit_normal, t the share of the timesteps; above 0 means more noise."""
    logit_std: float = 1.0
    """Deviation of the same."""
    scheduler_type: Literal["ddpm", "ddim", "pndm", "dpmsolver++", "unipc", "euler", "heun"] | None = None
    """Sampler stored in the pipeline and used for pictures (default: ddim, for flow matching dpmsolver++)."""
    num_train_timesteps: int = 1000
    """Steps T of the diffusion process."""
    label_dropout: float = 0.1
    """Share of samples that are shown without their class, for classifier-free guidance."""
    condition_on: str | list[str] = field(default_factory=list)
    """Numeric columns of the metadata that the network is told beside the class, such as speed,aspect."""
    condition_dropout: float = 0.1
    """Share of samples shown without any condition, and share shown without each alone; without class never any."""
    augment_probability: float = 0.5
    """Share of samples shown as one of their augmented copies, where the latents hold any (encode --augment_copies)."""
    ema_half_life: float = 100_000
    """Half-life of the averaged weights in samples, shortened to 5 % of the samples seen at the start."""
    ema_profiles: tuple[float, ...] = (0.05, 0.10)
    """Relative widths of the averages kept for `mdaug ema`; [] tracks none. Each takes 4 bytes per parameter, divided
    over the ranks, and on disk 2 bytes per parameter and snapshot."""
    ema_snapshots: int = 16
    """Snapshots of those averages that stay, evenly over the run; at least 4."""
    warmup_steps: int = 2000
    """Optimizer steps of linear warm-up (at most a tenth of the run), before the cosine decay to 0."""
    best_by: Literal["loss", "fd"] = "loss"
    """What decides best/: the validation losses, or the Fréchet distance of samples to the validation images."""
    fd_samples: int = 256
    """Samples made for it at each validation, over all ranks."""
    eval_steps: int = 1000
    """With --save_images: optimizer steps between pictures of samples."""
    num_inference_steps: int = 50
    """Sampling steps for those pictures, and for best_by fd."""
    compile: bool = False
    """Compile the U-Net (torch.compile; needs a C compiler): slow first steps, then faster ones on a GPU."""

    ALIASES: ClassVar[dict[str, str]] = {**TrainingConfig.ALIASES, "vqvae_model_path": "vqvae_path"}

    def __post_init__(self) -> None:
        """Refuse values that cannot work."""
        super().__post_init__()
        kinds, levels = self.attention.split(","), len(self.block_out_channels)
        known = {"full", "none", "window", "axial"}  # as in mdaug/models/hybrid_unet.py, which needs torch
        if kinds != ["hybrid"] and (not known.issuperset(kinds) or len(kinds) not in (1, levels)):
            raise ValueError(
                f"attention={self.attention} must be one of hybrid, full, none, window, axial, or one of the last four "
                f"for each of the {levels} levels of block_out_channels, fine to coarse, with commas between"
            )
        if self.vqvae_path is None:
            raise ValueError("vqvae_path is missing: give the folder of the trained VQ-VAE with --vqvae_path")
        if self.beta_schedule == "cosine" or (self.beta_schedule is None and self.prediction_type != schedulers.FLOW):
            self.beta_schedule = "squaredcos_cap_v2"
        self.scheduler_type = self.scheduler_type or schedulers.default_scheduler(self.prediction_type)
        for name in ("eval_steps", "num_inference_steps", "ema_half_life", "num_train_timesteps"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)} must be greater than 0")
        for width in self.ema_profiles:
            if not 0 < width <= WIDEST:
                raise ValueError(f"ema_profiles={list(self.ema_profiles)}: {width} is not above 0 and at most {WIDEST}")
        if self.ema_snapshots < 4:
            raise ValueError(f"ema_snapshots={self.ema_snapshots} must be 4 or greater")
        if isinstance(self.condition_on, str):
            self.condition_on = [name.strip() for name in self.condition_on.split(",")]
        if not 0 <= self.augment_probability <= 1:
            raise ValueError(f"augment_probability={self.augment_probability} must be between 0 and 1")
        for name in ("label_dropout", "condition_dropout", "dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 0 and below 1")
        if self.fd_samples <= 1:
            raise ValueError(f"fd_samples={self.fd_samples} must be 2 or greater")
        if self.compile and self.zero_stage == 3:
            raise ValueError("compile=True and zero_stage=3 exclude each other; use --zero_stage 2 or less")
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps={self.warmup_steps} must be 0 or greater")
        self._check_objective(self.scheduler_type)

    def _check_objective(self, sampler: str) -> None:
        schedulers.validate(sampler, self.beta_schedule, self.prediction_type, self.rescale_betas_zero_snr)
        schedulers.validate_steps(sampler, self.num_inference_steps, self.num_train_timesteps)
        if self.min_snr_gamma is not None:
            if self.min_snr_gamma <= 0:
                raise ValueError(f"min_snr_gamma={self.min_snr_gamma} must be greater than 0")
            for name, given in (
                ("rescale_betas_zero_snr", self.rescale_betas_zero_snr),
                ("prediction_type=flow_matching", self.prediction_type == schedulers.FLOW),
            ):
                if given:
                    raise ValueError(
                        f"min_snr_gamma={self.min_snr_gamma} contradicts {name}: the last timestep is pure noise, of "
                        "weight min(0, gamma) = 0, so the first step of sampling would not be trained; leave one out"
                    )
        if self.logit_std <= 0:
            raise ValueError(f"logit_std={self.logit_std} must be greater than 0")
        if self.timestep_sampling == "uniform" and (self.logit_mean, self.logit_std) != (0, 1):
            raise ValueError(
                f"logit_mean={self.logit_mean}, logit_std={self.logit_std} contradict timestep_sampling=uniform; "
                "choose timestep_sampling=logit_normal or leave them out"
            )

    def made_from(self) -> dict[str, str]:
        """Return role -> content hash of the inputs, as every training does."""
        from shards import provenance

        return {**super().made_from(), "vqvae": provenance.read(_fitting_vqvae(self), "vqvae")["hash"]}

    def check_output(self, inputs_there: bool) -> None:
        """Refuse a run folder of another run and a folder of other latents."""
        from mdaug.training.encode import refuse_other_latents

        super().check_output(inputs_there)
        if self.latents_dir is not None and inputs_there:
            refuse_other_latents(self.latents_dir, self.made_from())


def _fitting_vqvae(config: LDMConfig) -> Path:
    """Return the folder of the VQ-VAE; raises UserError where its images or latents are of another size."""
    from mdaug.models.vqvae import find_vqvae, load_geometry
    from shards.errors import UserError
    from shards.validation import written

    assert config.vqvae_path is not None
    vqvae = find_vqvae(config.vqvae_path)
    geometry = load_geometry(vqvae)
    trained = written(*geometry["image_shape"][:2])
    if trained != config.image_size:
        raise UserError(f"image_size={config.image_size}, but {vqvae} was trained at {trained} pixels")
    if geometry["latent_shape"][0] != config.latent_channels:
        raise UserError(
            f"latent_channels={config.latent_channels}, but the latents of {vqvae} have {geometry['latent_shape'][0]} "
            "channels; the diffusion model works on them, so the two must agree"
        )
    return vqvae


def train_ldm(config: LDMConfig) -> None:
    """Train the diffusion model; the same command again resumes. Latents are made first where they are missing."""
    from mdaug import distributed

    distributed.init()

    from mdaug.training.cost import estimate_ldm
    from mdaug.training.encode import EncodeConfig, augmentation_of, encode_packed
    from mdaug.training.engine import check_before_data
    from mdaug.training.ldm_task import LDMTask
    from mdaug.training.loop import train
    from mdaug.training.run_folder import open_run, packing, plan_batches
    from shards import provenance
    from shards.packed import open_packed

    check_before_data(config)
    vqvae = _fitting_vqvae(config)
    packed = open_packed(config.data_dir, config.image_size, **packing(config))
    made_from = {
        "images": provenance.read(packed, "images")["hash"],
        "vqvae": provenance.read(vqvae, "vqvae")["hash"],
    }
    if not open_run(config, **made_from):
        return
    latents = config.latents_dir or config.output_dir / "latents"
    encoding = EncodeConfig(packed, vqvae, latents, num_workers=config.num_workers, **augmentation_of(latents))
    encode_packed(packed, vqvae, latents, encoding)
    task = LDMTask(config, packed, vqvae, latents, made_from)
    if distributed.is_main():
        print(estimate_ldm(task, config.batch_size), flush=True)
    if config.compile:
        task.compile()
    train(task, config, plan_batches(config, task.train_set.num_images))
