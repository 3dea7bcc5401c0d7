"""Options of train-ldm, distil and ema: the diffusion models."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from mdaug.pipeline import schedulers
from mdaug.training.options import TrainingConfig
from shards.validation import at_least, operational, within

WIDTHS = "(0, 0.28]"  # sigma_rel of an average; that of gamma = 0, the plain mean, is 12^-1/2 = 0.289


@dataclass(kw_only=True)
class DiffusionConfig(TrainingConfig):
    """What train-ldm and distil have in common."""

    vqvae_path: Path = operational()
    """VQ-VAE: the run folder of train-vqvae (its best/) or a diffusers folder."""
    latents_dir: Path | None = operational(None)
    """Latent shards of `mdaug encode`; default <output_dir>/latents. Made now if they do not exist. Folders of latents
    may be named in aux_dir, too."""
    ema_half_life: float = 100_000
    """Half-life of the averaged weights in samples, shortened to 5 % of the samples seen at the start."""
    warmup_steps: int = 2000
    """Optimizer steps of linear warm-up (at most a tenth of the run), before the cosine decay to 0."""
    fd_samples: int = 256
    """Samples made at each validation, over all ranks, where best/ is decided by their Fréchet distance."""
    eval_steps: int = operational(1000)
    """With --save_images: optimizer steps between pictures of samples."""
    num_inference_steps: int = operational(50)
    """Sampling steps for those pictures, and for that distance."""
    compile: bool = operational(False)
    """Compile the U-Net (torch.compile; needs a C compiler, Python.h): slow first steps, then faster ones on a GPU."""

    ALIASES: ClassVar[dict[str, str]] = {**TrainingConfig.ALIASES, "vqvae_model_path": "vqvae_path"}

    def __post_init__(self) -> None:
        """Refuse values that cannot work."""
        super().__post_init__()
        at_least(self, 1, "eval_steps", "num_inference_steps")
        within(self, "(0, inf)", "ema_half_life")
        at_least(self, 2, "fd_samples")
        at_least(self, 0, "warmup_steps")
        if self.compile and self.zero_stage == 3:
            raise ValueError("compile=True and zero_stage=3 exclude each other; use --zero_stage 2 or less")


@dataclass(kw_only=True)
class LDMConfig(DiffusionConfig):
    """Train the class-conditional latent diffusion model on the latents of a VQ-VAE."""

    aux_labels: Literal["auto", "classes", "none"] = "auto"
    """classes: auxiliary classes are further classes of the model; none: auxiliary images are shown without a class;
    auto: none for a set of one class (that is not the same as another one, see same_names), else classes."""
    same_names: Literal["ask", "same", "other"] = "ask"
    """Classes of one name in data_dir and aux_dir: same: the same class; other: another class, which is renamed."""
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
    scheduler_type: Literal["ddpm", "ddim", "pndm", "dpmsolver++", "unipc", "euler", "heun"] | None = operational(None)
    """Sampler stored in the pipeline and used for pictures (default: ddim, for flow matching dpmsolver++)."""
    num_train_timesteps: int = 1000
    """Steps T of the diffusion process."""
    label_dropout: float = 0.1
    """Share of samples that are shown without their class, for classifier-free guidance."""
    condition_on: str | list[str] = field(default_factory=list)
    """Numeric columns of the metadata that condition the network beside the class, such as speed,aspect."""
    condition_dropout: float = 0.1
    """Share of samples shown without any condition, and share shown without each alone; without class never any."""
    augment_probability: float = 0.5
    """Share of samples shown as one of their augmented copies, if the latents have any (encode --augment_copies)."""
    ema_profiles: tuple[float, ...] = (0.05, 0.10)
    """Relative widths of the averages kept for `mdaug ema`; [] tracks none. Each takes 4 bytes per parameter, divided
    over the ranks, and on disk 2 bytes per parameter and snapshot."""
    ema_snapshots: int = operational(16)
    """Snapshots of those averages that stay, evenly over the run; at least 4."""
    best_by: Literal["loss", "fd"] = "loss"
    """What decides best/: the validation losses, or the Fréchet distance of samples to the validation images."""

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
        if self.beta_schedule == "cosine" or (self.beta_schedule is None and self.prediction_type != schedulers.FLOW):
            self.beta_schedule = "squaredcos_cap_v2"
        self.scheduler_type = self.sampler
        if isinstance(self.condition_on, str):
            self.condition_on = [name.strip() for name in self.condition_on.split(",")]
        at_least(self, 1, "num_train_timesteps")
        within(self, "(0, inf)", "min_snr_gamma", "logit_std")
        within(self, WIDTHS, "ema_profiles")
        at_least(self, 4, "ema_snapshots")
        within(self, "[0, 1]", "augment_probability")
        within(self, "[0, 1)", "label_dropout", "condition_dropout", "dropout")
        self._check_objective()

    @property
    def sampler(self) -> Any:
        """`scheduler_type`, or its default for the prediction type."""
        return self.scheduler_type or schedulers.default_scheduler(self.prediction_type)

    def _check_objective(self) -> None:
        schedulers.validate(self.sampler, self.beta_schedule, self.prediction_type, self.rescale_betas_zero_snr)
        schedulers.validate_steps(self.sampler, self.num_inference_steps, self.num_train_timesteps)
        if self.min_snr_gamma is not None:
            for name, given in (
                ("rescale_betas_zero_snr", self.rescale_betas_zero_snr),
                ("prediction_type=flow_matching", self.prediction_type == schedulers.FLOW),
            ):
                if given:
                    raise ValueError(
                        f"min_snr_gamma={self.min_snr_gamma} contradicts {name}: the last timestep is pure noise, of "
                        "weight min(0, gamma) = 0, so the first step of sampling would not be trained; leave one out"
                    )
        if self.timestep_sampling == "uniform" and (self.logit_mean, self.logit_std) != (0, 1):
            raise ValueError(
                f"logit_mean={self.logit_mean}, logit_std={self.logit_std} contradict timestep_sampling=uniform; "
                "choose timestep_sampling=logit_normal or leave them out"
            )


@dataclass(kw_only=True)
class DistilConfig(DiffusionConfig):
    """Fine-tune a trained pipeline into one that samples in 1 to 4 calls of its U-Net, by consistency tuning.

    Network, classes, conditions and noise schedule are those of the pipeline.
    """

    ldm_path: Path = operational()
    """Run folder of train-ldm (its best/ is taken) or a pipeline folder: what is distilled."""
    gap_stages: int = 4
    """Stages of the training, equally long; in stage s a sample is compared with the same one at 2^-s less noise."""
    huber: float = 0.1
    """Where the loss goes over from the squared error to the error, in deviations of the network's output."""
    lr: float = 1e-4
    """Peak learning rate of AdamW."""
    num_inference_steps: int = operational(2)
    """Sampling steps for pictures, and for the Fréchet distance that decides best/."""

    def __post_init__(self) -> None:
        """Refuse values that cannot work."""
        super().__post_init__()
        within(self, "[1, 16]", "gap_stages")
        within(self, "(0, inf)", "huber")
        if self.init_from is not None:
            raise ValueError(f"init_from={self.init_from} must be left out: distilling begins with ldm_path")


@dataclass
class EmaConfig:
    """Write the pipeline of an averaged model whose length is chosen after the training (Karras et al. 2024)."""

    run_dir: Path
    """Run folder of train-ldm, trained with --ema_profiles."""
    reconstruct: float
    """Relative width sigma_rel of the wanted average, such as 0.075; larger forgets more slowly."""
    output_dir: Path | None = None
    """Pipeline folder to write; default <run_dir>/pipeline-ema-<width>."""

    def __post_init__(self) -> None:
        """Refuse a width that no power function has."""
        within(self, WIDTHS, "reconstruct")
        self.output_dir = self.pipeline_dir

    @property
    def pipeline_dir(self) -> Path:
        """The pipeline folder to write."""
        return self.output_dir or self.run_dir / f"pipeline-ema-{self.reconstruct:g}"
