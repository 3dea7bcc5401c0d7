"""Options of the trainings, of `mdaug encode`, `mdaug ema` and `mdaug estimate`."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from mdaug import augment
from mdaug.pipeline import schedulers
from shards.validation import at_least, height_width, identity_of, one_of, operational, within, written

# Whose figures mdaug/training/cost.py has.
GPUS = ("H200", "H100", "A100", "L40S", "L40", "A10", "V100", "T4", "H100 PCIe", "H100 NVL")
WIDTHS = "(0, 0.28]"  # sigma_rel of an average; that of gamma = 0, the plain mean, is 12^-1/2 = 0.289
# Files in deepspeed_configs/ of earlier versions, which had one for each precision.
OLD_JSON = re.compile(r"(zero[0-3](?:_offload)?)_(fp32|bf16|fp16)\.json")


@dataclass
class TrainingConfig:
    """Options of both training commands."""

    data_dir: Path = operational()
    """Packed shards, or an image folder `root/<class>/*.png` that is packed once into a cache."""
    output_dir: Path = operational()
    """Run folder. The same command again resumes it."""
    aux_dir: Path | list[Path] | None = operational(None)
    """Auxiliary images of other persons, sites or simulations, which train and never validate: packed shards or image
    folders, several with commas between."""
    aux_share: float = 0.5
    """Share of each batch that they take."""
    balance_classes: bool = False
    """Show small classes as often as large ones, among the images of data_dir and among the auxiliary ones."""
    init_from: Path | None = operational(None)
    """Run or model folder of an earlier training whose weights this one starts from, of the same architecture."""
    image_size: int | str = 256
    """Pixels of the images: one number for squares, or height x width such as 128x256."""
    group_by: str | None = None
    """How an image folder is split when it is packed here; see `mdaug pack --help`."""
    image_mode: Literal["auto", "rgb", "gray", "level"] = "auto"
    """Channels of an image folder that is packed here; gray trains on the level behind the colour map, level does so
    where the map is known."""
    colormap: str = "auto"
    """Colour map of that image folder; see `mdaug pack --help`."""
    batch_size: int | Literal["auto"] = operational(16)
    """Micro batch: samples that one device holds at once; auto: what fits into the GPU, 16 without one."""
    gradient_accumulation_steps: int = operational(1)
    """Micro batches per rank and optimizer step; ignored when --global_batch_size is given."""
    global_batch_size: int | None = operational(None)
    """Samples per optimizer step over all ranks; accumulation follows. Default: batch x ranks x accumulation."""
    epochs: int = 100
    """Passes over the training set."""
    train_samples: int | None = None
    """Length of the run in samples instead of epochs; good for presets that meet sets of any size."""
    train_minutes: float | None = None
    """Length of the run in minutes instead of epochs and train_samples: its speed is measured before the first step,
    the number of samples follows and is kept; validations and checkpoints come at least four times."""
    lr: float = 5e-5
    """Peak learning rate of AdamW."""
    weight_decay: float = 0.01
    """Decoupled weight decay of AdamW."""
    adam_betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of AdamW's two moments."""
    max_grad_norm: float = 1.0
    """Gradient norm above which gradients are scaled down; 0 switches clipping off."""
    max_skipped_steps: int = operational(20)
    """Steps in a row whose gradient is not finite (they are skipped and counted) after which the run stops."""
    mixed_precision: Literal["auto", "no", "fp16", "bf16"] = operational("auto")
    """auto: bf16 on GPUs that have it, fp16 on older ones, no (fp32) on CPU."""
    zero_stage: Literal[0, 1, 2, 3] = operational(0)
    """DeepSpeed ZeRO stage; picks deepspeed_configs/zero<stage>.json. 0 leaves it to --deepspeed_config."""
    deepspeed_config: Path | None = operational(None)
    """A DeepSpeed JSON of your own instead; "auto" values are filled in from this configuration."""
    val_epochs: int = 1
    """Validate every N epochs."""
    val_samples: int | None = None
    """Validate every N samples instead."""
    early_stop_patience: int = 3
    """Stop after this many validations without improvement; 0 never stops early."""
    save_epochs: int = operational(5)
    """Write a checkpoint every N epochs (one is always written at the end and when asked to stop)."""
    save_samples: int | None = operational(None)
    """Write a checkpoint every N samples instead."""
    keep_last: int = operational(1)
    """Checkpoints kept; the best model is kept apart, in best/."""
    save_images: bool = operational(False)
    """Write pictures during training."""
    logging_steps: int = operational(100)
    """Optimizer steps between log lines."""
    num_workers: int = operational(2)
    """Data loading processes per rank; 0 loads in the training process."""
    seed: int = 0
    """Seed of initial weights, sample order and noise."""
    use_wandb: bool = operational(False)
    """Also log to Weights & Biases (offline without a network)."""
    wandb_project: str = operational("mdaug")
    """Project name at Weights & Biases."""
    verify: bool = operational(False)
    """Compare the hashes of all files of a finished folder, not their sizes alone; what was changed is made again."""

    ALIASES: ClassVar[dict[str, str]] = {"fp16": "mixed_precision=fp16"}

    def __post_init__(self) -> None:
        """Refuse values that cannot work; raises ValueError naming field, value and what is accepted."""
        self.image_size = written(*height_width(self.image_size))
        if isinstance(self.aux_dir, Path) and "," in str(self.aux_dir):
            self.aux_dir = [Path(name.strip()) for name in str(self.aux_dir).split(",")]
        if isinstance(self.aux_dir, list):
            self.aux_dir = [folder.expanduser() for folder in self.aux_dir]
        at_least(
            self, 1, "batch_size", "gradient_accumulation_steps", "global_batch_size", "epochs", "train_samples",
            "val_epochs", "val_samples", "save_epochs", "save_samples", "keep_last", "logging_steps",
            "max_skipped_steps",
        )  # fmt: skip
        at_least(self, 0, "weight_decay", "max_grad_norm", "early_stop_patience", "num_workers", "seed")
        within(self, "(0, 1]", "lr")
        within(self, "(0, inf)", "train_minutes")
        within(self, "[0, 1)", "adam_betas")
        within(self, "(0, 1)", "aux_share")
        path = self.deepspeed_config
        if path is not None and not path.exists() and (old := OLD_JSON.fullmatch(path.name)):
            precision = "no" if old[2] == "fp32" else old[2]
            raise ValueError(
                f"deepspeed_config={path} does not exist: one file serves every precision now; "
                f"use {path.with_name(old[1] + '.json')} with --mixed_precision {precision}"
            )
        if self.global_batch_size is not None and self.gradient_accumulation_steps != 1:
            raise ValueError(
                f"global_batch_size={self.global_batch_size} and "
                f"gradient_accumulation_steps={self.gradient_accumulation_steps} exclude each other: "
                "accumulation follows from the global batch"
            )


@dataclass
class VQVAEConfig(TrainingConfig):
    """Train the VQ-VAE that turns spectrograms into latents and back."""

    latent_channels: int = 4
    """Channels of a latent."""
    vq_embed_dim: int = 4
    """Dimension of a code; must equal latent_channels."""
    vq_num_embed: int = 128
    """Number of codes, K."""
    n_layers: int = 3
    """Halvings of height and width: 256 pixels -> 32 x 32 latents for 3, 64 x 64 for 2, 16 x 16 for 4."""
    base_channels: int = 32
    """Channels of the first level; they double per level up to 256."""
    lr_schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate over the run; cosine ends at 0 and pays in short runs."""
    reconstruction_loss: Literal["l1", "l2"] = "l2"
    """Distance of original and reconstruction in [-1, 1]."""
    commitment: float = 0.25
    """Weight of |z - code|^2 on the encoder's side."""
    codebook_decay: float = 0.99
    """Share of the old code statistics kept per optimizer step."""
    codebook_gradient: Literal["straight_through", "rotation"] = "straight_through"
    """How gradients pass the quantizer: unchanged, or turned and scaled as the latent is onto its code."""
    use_perceptual: bool = False
    """Add the LPIPS distance to the loss; its weights must be on this machine ('make weights')."""
    lambda_perceptual: float = 0.1
    """Weight of the LPIPS distance."""
    perceptual_net: Literal["vgg", "alex", "squeeze"] = "vgg"
    """Backbone of LPIPS; 'make weights NET=alex' fetches the weights of alex."""
    perceptual_weights: Path | None = operational(None)
    """File of its weights; default: where torch.hub keeps it."""
    lambda_edge: float = 0.0
    """Weight of the distance of the strength of edges, window by window: reconstructions as sharp as the originals."""
    lambda_spectrogram: float = 0.0
    """Weight of the reconstruction_loss over the pixels above the floor alone."""
    lambda_doppler: float = 0.0
    """Weight of the distance of the Doppler profiles of each time column."""
    use_discriminator: bool = False
    """Add a PatchGAN discriminator with hinge loss."""
    disc_start: int = 50_000
    """Samples after which the discriminator starts to train and to count."""
    lambda_adversarial: float = 0.8
    """Weight of the adversarial loss."""
    adaptive_weight: bool = True
    """Multiply that weight by |gradient of the distance| / |gradient of the adversarial loss| of each image."""
    gradient_penalty: float = 0.0
    """Weight gamma of the R1 penalty on the discriminator's gradient at the originals, in fp32."""
    disc_lr: float | None = None
    """Learning rate of the discriminator's AdamW (default: lr); constant."""
    disc_channels: int = 64
    """Channels of the discriminator's first layer."""
    compile: bool = operational(False)
    """Compile encoder and decoder (torch.compile; needs a C compiler, Python.h): slow first steps, then faster ones."""

    def __post_init__(self) -> None:
        """Refuse values that cannot work."""
        super().__post_init__()
        at_least(self, 1, "latent_channels", "vq_num_embed", "n_layers", "base_channels", "disc_channels")
        at_least(
            self, 0, "lambda_perceptual", "lambda_edge", "lambda_spectrogram", "lambda_doppler", "disc_start",
            "lambda_adversarial", "gradient_penalty", "commitment",
        )  # fmt: skip
        within(self, "(0, 1)", "codebook_decay")
        within(self, "(0, inf)", "disc_lr")
        for name in ("base_channels", "disc_channels"):
            if getattr(self, name) % 8:
                raise ValueError(f"{name}={getattr(self, name)} must be a multiple of 8 (normalisation groups)")
        if self.use_discriminator and min(height_width(self.image_size)) < 16:
            raise ValueError(f"image_size={self.image_size} must be 16 or more for --use_discriminator")
        if self.compile and self.zero_stage == 3:
            raise ValueError("compile=True and zero_stage=3 exclude each other; use --zero_stage 2 or less")
        if self.latent_channels != self.vq_embed_dim:
            raise ValueError(
                f"latent_channels={self.latent_channels} and vq_embed_dim={self.vq_embed_dim} must be equal: a latent "
                "pixel is replaced by a code, and the diffusion model works on the same vectors before that"
            )
        if any(side % 2**self.n_layers for side in height_width(self.image_size)):
            raise ValueError(
                f"image_size={self.image_size} must be a multiple of {2**self.n_layers} for n_layers={self.n_layers}"
            )


@dataclass
class EncodeConfig:
    """Encode packed images to latent shards: the latents before quantization, decoding quantizes."""

    data_dir: Path = operational()
    """Packed shards, or an image folder (packed into a cache, with the options that train-vqvae was given)."""
    vqvae_path: Path = operational()
    """VQ-VAE: the run folder of train-vqvae (its best/) or a diffusers folder."""
    output_dir: Path = operational()
    """Folder of the latent shards. The same command again continues or says that it is finished."""
    batch_size: int = operational(64)
    """Images that one device encodes at once."""
    mixed_precision: Literal["auto", "no", "fp16", "bf16"] = operational("no")
    """Precision of the encoder; the statistics are always fp64."""
    num_workers: int = operational(2)
    """Image decoding processes per rank."""
    augment_copies: int = 0
    """Augmented copies of each training image that are encoded beside it; validation images never have any."""
    augment_with: str | list[str] = field(default_factory=lambda: list(augment.SAFE))
    """Transforms, each on in half of the copies: roll (in time, circular), shift (in time, the floor comes in),
    doppler_scale, doppler_shift, gain, noise, time_mask, doppler_mask; and, if the classes allow it, flip_time and
    flip_doppler."""
    augment_seed: int = 0
    """What is done to copy c of an image depends on this seed, the image's key and c alone."""
    verify: bool = operational(False)
    """Compare the hashes of all files of a finished folder, not their sizes alone; what was changed is made again."""

    def __post_init__(self) -> None:
        """Refuse values that cannot work."""
        if isinstance(self.augment_with, str):
            self.augment_with = [name.strip() for name in self.augment_with.split(",")]
        augment.check_names(self.augment_with)
        at_least(self, 1, "batch_size")
        at_least(self, 0, "num_workers", "augment_copies", "augment_seed")

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the latents beside their inputs; without copies, the transforms decide nothing."""
        return identity_of(self) if self.augment_copies else {"augment_copies": 0}


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
    """Fine-tune a trained pipeline into one that samples in 1 to 4 calls of its U-Net.

    By consistency tuning, and by a discriminator of the samples of one and two calls.

    Network, classes, conditions and noise schedule are those of the pipeline.
    """

    ldm_path: Path = operational()
    """Run folder of train-ldm (its best/ is taken) or a pipeline folder: what is distilled."""
    ema_half_life: float = 100_000
    """Half-life of the averaged weights in samples. The average begins at the pipeline; a third of the run is good."""
    gap_stages: int = 3
    """Stages of the training, equally long; in stage s a sample is compared with the same one at 2^-s less noise."""
    huber: float = 0.1
    """Where the loss goes over from the squared error to the error, in deviations of the network's output."""
    adversarial: float = 0.1
    """Weight of the discriminator that judges the latents made in one and two calls; 0 trains without it."""
    lr: float = 1e-4
    """Peak learning rate of AdamW."""
    num_inference_steps: int = operational(2)
    """Sampling steps for pictures, and for the Fréchet distance that decides best/."""

    def __post_init__(self) -> None:
        """Refuse values that cannot work."""
        super().__post_init__()
        within(self, "[1, 16]", "gap_stages")
        within(self, "(0, inf)", "huber")
        at_least(self, 0, "adversarial")
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


@dataclass
class EstimateConfig:
    """Memory, step time, hours and GPU-hours of a training run, estimated; nothing is started."""

    command: Literal["train-ldm", "train-vqvae"]
    """Training command; also as the first argument."""
    training: Path | None = None
    """--config: a preset, or config.yaml of a run; default: the defaults of the command."""
    flags: str = ""
    """Further flags of the training command in one text, such as --flags="--batch_size 16 --zero_stage 2"; they win."""
    nodes: int = 1
    """Number of machines."""
    gpus_per_node: int = 8
    """GPUs, and ranks, of each."""
    gpu: str = "H100"
    """Kind of GPU: H200, H100, A100, L40S, L40, A10, V100, T4, "H100 PCIe" or "H100 NVL"."""
    mfu: float = 0.3
    """Share of the GPU's peak that the networks are assumed to reach."""
    network_gbit_s: float = 400.0
    """What all network adapters of a machine send together, Gbit/s."""
    disk_gb_s: float = 2.0
    """What the storage gives to all machines together, GB/s."""
    samples_per_shard: int = 1000
    """Samples of a shard, if the configuration names no packed shards that exist."""
    samples: int = 10_000
    """Images of the training set, if the configuration names no packed shards that exist."""
    channels: int = 3
    """Channels of the images, likewise."""
    classes: int = 10
    """Number of classes, likewise."""

    ALIASES: ClassVar[dict[str, str]] = {"config": "training"}
    POSITIONAL: ClassVar[str] = "command"

    def __post_init__(self) -> None:
        """Refuse values that cannot be; raises ValueError naming field and value."""
        one_of(self, GPUS, "gpu")
        within(self, "(0, 1]", "mfu")
        within(self, "(0, inf)", "network_gbit_s", "disk_gb_s")
        at_least(self, 1, "nodes", "gpus_per_node", "samples", "samples_per_shard", "channels", "classes")
