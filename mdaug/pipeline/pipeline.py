"""The pipeline: class labels in, micro-Doppler spectrograms out; or spectrograms, to be redrawn as a class.

This file imports torch, diffusers and what diffusers itself needs: it is shipped inside every pipeline folder.
"""

from __future__ import annotations

import importlib
import inspect
import json
import math
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from huggingface_hub import HfApi
from PIL import Image

# Read now: diffusers keeps remote code under its file name, where the code of another pipeline may replace it later.
_SOURCE = Path(__file__).read_text(encoding="utf-8")

DISTILLED = ("LCMScheduler", "FlowMatchLCMScheduler")  # of models that need 1 to 4 steps
LAST_CALL = 0.65  # their last step begins at this share of the noise schedule


def _steps_of(strength: float, num_inference_steps: int) -> int:
    """Return how many of the steps are done with a strength; raises ValueError for none."""
    if not 0 < strength <= 1:
        raise ValueError(f"strength={strength} must be greater than 0 and at most 1")
    done = int(num_inference_steps * strength + 1e-9)  # 0.29 * 100 is 28.999999999999996
    if done == 0:
        raise ValueError(
            f"strength={strength} of {num_inference_steps} steps leaves none to do; "
            f"give num_inference_steps={math.ceil(1 / strength)} or more"
        )
    return done


class MicroDopplerPipeline(DiffusionPipeline):
    """Class-conditional latent diffusion: noise -> U-Net -> VQ-VAE decoder.

    The U-Net works on normalised latents z = (encode(x).latents - mean) / std. With
    `.to("cuda", torch.bfloat16)` the two networks run in bfloat16, while noise, scheduler and the
    choice of the code vectors stay in float32.

    Args:
        vqvae: a diffusers `VQModel`.
        unet: called as unet(latents, timestep, class_labels=labels); label len(classes) means "no class".
        scheduler: a diffusers scheduler; another one that fits can be set at any time.
        classes: class names; a label is an index into them.
        latent_mean: mean of the training latents, one per channel.
        latent_std: their standard deviation, one per channel.
        latent_shape: [channels, height, width] of the latents.
        image_shape: [height, width, channels] of the images.
        colormap: {"name", "palette"} of images of one channel, or None; the palette is 256 x RRGGBB. Pictures
            ("pil") are painted with it, arrays and tensors hold the levels.
        floor: most frequent colour of the training images, a level 0 to 255 per channel, or None; it identifies the
            colour map of pictures in colour.
        conditions: {"names", "mean", "std", "values"} of the continuous conditions, or None; "values" are joint values
            of training images by class, in the units of the metadata, None where an image had none.
        auxiliary: those of the classes that only helped to train (other persons, sites, simulations), or None.
        training: {"made_from": {role: content hash}, "metrics": {name: number}} for the model card, or None.
    """

    model_cpu_offload_seq = "unet->vqvae"

    def __init__(
        self,
        vqvae: Any,
        unet: Any,
        scheduler: Any,
        # diffusers takes arguments without a default for components
        classes: list[str] | None = None,
        latent_mean: list[float] | None = None,
        latent_std: list[float] | None = None,
        latent_shape: list[int] | None = None,
        image_shape: list[int] | None = None,
        colormap: dict[str, str] | None = None,
        conditions: dict[str, Any] | None = None,
        training: dict[str, dict] | None = None,
        floor: list[int] | None = None,
        auxiliary: list[str] | None = None,
    ):
        super().__init__()
        if not (classes and latent_mean and latent_std and latent_shape and image_shape):
            raise ValueError("a pipeline needs classes, latent_mean, latent_std, latent_shape and image_shape")
        if not len(latent_mean) == len(latent_std) == latent_shape[0]:
            raise ValueError(
                f"{len(latent_mean)} means and {len(latent_std)} deviations for {latent_shape[0]} latent channels; "
                "give one of each per channel"
            )
        self.register_modules(vqvae=vqvae, unet=unet, scheduler=scheduler)
        self.register_to_config(
            classes=list(classes),
            latent_mean=list(latent_mean),
            latent_std=list(latent_std),
            latent_shape=list(latent_shape),
            image_shape=list(image_shape),
            colormap=colormap,
            conditions=conditions,
            training=training,
            floor=floor,
            auxiliary=auxiliary,
        )

    @torch.no_grad()
    def __call__(
        self,
        class_labels: int | str | Sequence[int | str],
        num_images_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        guidance_scale: float = 1.0,
        num_inference_steps: int | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        guidance_interval: Sequence[float] = (0.0, 1.0),
        conditions: dict[str, float | Sequence[float | None] | None] | None = None,
        image: Any = None,
        strength: float | None = None,
    ) -> ImagePipelineOutput | tuple:
        """Sample images, from noise or from images given.

        Args:
            class_labels: class names or indices, one or several.
            num_images_per_prompt: images of each label, next to each other in the result.
            generator: the source of the noise; a list gives every image its own. Generators on the CPU
                give the same noise whatever the device.
            guidance_scale: classifier-free guidance (Ho & Salimans 2022): prediction without class + scale
                (prediction with class - prediction without). 1 is no guidance, and costs half.
            num_inference_steps: steps of the scheduler (default: 50, of a distilled model 4).
            output_type: "pil": list of images; "np": float32 (B, H, W, C) in [0, 1]; "pt": float32
                (B, C, H, W) in [0, 1]; "latent": normalised latents, float32 (B, c, h, w).
            return_dict: return an `ImagePipelineOutput` rather than a tuple.
            guidance_interval: (low, high), the shares of the training timesteps within which guidance acts; 1 is pure
                noise. Steps outside are not guided and cost half (Kynkäänniemi et al. 2024).
            conditions: name -> value in the units of the metadata, one for all labels or one for each; the model
                chooses those that are None or left out.
            image: what to redraw, one image for all labels or one for each: pictures, or arrays (H, W, C), (B, H, W, C)
                or tensors (C, H, W), (B, C, H, W), uint8 or in [0, 1], as `output_type` "pil", "np" and "pt" give them.
                They are encoded, noised, and denoised as the labels say (Meng et al., SDEdit, ICLR 2022; diffusers'
                img2img).
            strength: share of the noise schedule in (0, 1] to which images are noised, and of the steps that are done.

        Raises:
            ValueError: an unknown class or condition, another number of generators than images, an image of another
                size or other channels, or a strength that leaves no step to do.
        """
        if output_type not in ("pil", "np", "pt", "latent"):
            raise ValueError(f"output_type={output_type} must be one of pil, np, pt, latent")
        # Labels and conditions, and the same without any for guidance.
        device = self._execution_device
        labels = torch.tensor(self._label_indices(class_labels)).repeat_interleave(num_images_per_prompt)
        if isinstance(generator, list) and len(generator) != len(labels):
            raise ValueError(
                f"{len(generator)} generators for {len(labels)} images; give one per image, or one for all"
            )
        both = torch.cat([torch.full_like(labels, len(self.config.classes)), labels]).to(device)
        labels = both[len(labels) :]
        given, both_given = {}, {}  # never an augmentation: it samples images as they are
        values = self._condition_values(conditions or {}, len(labels) // num_images_per_prompt)
        if values is not None:
            values = values.repeat_interleave(num_images_per_prompt, dim=0).to(device)
            given = {"conditions": values}
            both_given = {"conditions": torch.cat([torch.full_like(values, torch.nan), values])}

        # The path from noise to latents, or its last part.
        if num_inference_steps is None:
            num_inference_steps = 4 if type(self.scheduler).__name__ in DISTILLED else 50
        if (image is None) != (strength is None):
            raise ValueError("image and strength belong together; give both, or neither to sample from noise")
        timesteps = self._timesteps(num_inference_steps, strength)
        low, high = (share * self.scheduler.config.num_train_timesteps for share in guidance_interval)
        shape = (len(labels), *self.config.latent_shape)
        # Where it begins. Schedulers of flow matching start at N(0, 1) and scale nothing.
        latents = randn_tensor(shape, generator=generator, device=device)
        if image is None:
            latents = latents * getattr(self.scheduler, "init_noise_sigma", 1.0)
        else:
            encoded = self.encode(self._pixels(image, len(labels) // num_images_per_prompt).to(device))
            encoded = encoded.repeat_interleave(len(labels) // len(encoded), dim=0)
            begin = timesteps[:1].repeat(len(labels))
            if hasattr(self.scheduler, "add_noise"):
                latents = self.scheduler.add_noise(encoded, latents, begin)
            else:
                latents = self.scheduler.scale_noise(encoded, begin, latents)
        scale = getattr(self.scheduler, "scale_model_input", lambda sample, timestep: sample)
        takes_generator = "generator" in inspect.signature(self.scheduler.step).parameters
        step_options = {"generator": generator} if takes_generator else {}
        # The scheduler reads its timesteps on the CPU, so that no step waits for the device.
        for timestep, on_device in zip(self.progress_bar(timesteps), timesteps.to(device), strict=True):
            noisy = scale(latents, timestep).to(self.unet.dtype)
            if guidance_scale != 1.0 and low <= timestep <= high:
                prediction = self.unet(
                    torch.cat([noisy, noisy]), on_device, class_labels=both, **both_given
                ).sample.float()
                without, conditional = prediction.chunk(2)
                prediction = without + guidance_scale * (conditional - without)
            else:
                prediction = self.unet(noisy, on_device, class_labels=labels, **given).sample.float()
            latents = self.scheduler.step(prediction, timestep, latents, **step_options).prev_sample

        # Latents to pictures.
        images: Any = latents
        if output_type != "latent":
            images = (self.decode(latents) / 2 + 0.5).clamp(0, 1)
        if output_type in ("np", "pil"):
            images = images.permute(0, 2, 3, 1).cpu().numpy()
        if output_type == "pil":
            images = self.numpy_to_pil(images)
            if self.config.colormap:
                for image in images:
                    image.putpalette(bytes.fromhex(self.config.colormap["palette"]))
                images = [image.convert("RGB") for image in images]
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _timesteps(self, num_inference_steps: int, strength: float | None) -> torch.Tensor:
        """Set the scheduler, and return the timesteps to go through; with a strength, the last of them."""
        if type(self.scheduler).__name__ in DISTILLED:
            return self._few_timesteps(num_inference_steps, strength)
        self.scheduler.set_timesteps(num_inference_steps)
        timesteps = self.scheduler.timesteps
        if strength is None:
            return timesteps
        done = _steps_of(strength, num_inference_steps)
        if not self.scheduler.config.get("skip_prk_steps", True):
            raise ValueError(
                "the Runge-Kutta start of PNDMScheduler cannot begin on the way; set skip_prk_steps=True, or take "
                "another scheduler"
            )
        left_out = num_inference_steps - done
        # PNDM does its first step twice, wherever it begins.
        if self.scheduler.order == 1 and len(timesteps) > num_inference_steps:
            kept = torch.cat([timesteps[:1], timesteps[2:]])[left_out:]
            return torch.cat([kept[:1], kept[1:2], kept[1:]])
        begin = left_out * self.scheduler.order
        if hasattr(self.scheduler, "set_begin_index"):
            self.scheduler.set_begin_index(begin)
        return timesteps[begin:]

    def _few_timesteps(self, num_inference_steps: int, strength: float | None) -> torch.Tensor:
        """Set the scheduler of a distilled model: evenly from the noise it begins with to LAST_CALL of that.

        What a picture shows is decided where there is much noise; a single call finds the rest (docs/sampling.md).
        """
        begin = 1.0 if strength is None else strength
        count = num_inference_steps if strength is None else _steps_of(strength, num_inference_steps)
        shares = [begin * (1 - (1 - LAST_CALL) * i / max(1, count - 1)) for i in range(count)]
        if type(self.scheduler).__name__ == "FlowMatchLCMScheduler":
            self.scheduler.set_timesteps(sigmas=shares)
        else:
            last = self.scheduler.config.num_train_timesteps - 1
            self.scheduler.set_timesteps(timesteps=[round(share * last) for share in shares])
        return self.scheduler.timesteps

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Return normalised latents, float32 (B, c, h, w), of images (B, C, H, W) in [-1, 1]; `decode` goes back."""
        mean, std = (
            torch.tensor(values, device=images.device)[:, None, None]
            for values in (self.config.latent_mean, self.config.latent_std)
        )
        return (self.vqvae.encode(images.to(self.vqvae.dtype)).latents.float() - mean) / std

    def _pixels(self, image: Any, count: int) -> torch.Tensor:
        """Return images of any form, one or `count`, as float32 (B, C, H, W) in [-1, 1]."""
        parts = image if isinstance(image, list | tuple) else [image]
        pixels = []
        for part in parts:
            if isinstance(part, Image.Image):
                part = self._levels(part)
            if isinstance(part, np.ndarray):
                part = torch.from_numpy(part).movedim(-1, -3)
            part = part / 255 if part.dtype == torch.uint8 else part.float()
            pixels.append(part if part.ndim == 4 else part[None])
        height, width, channels = self.config.image_shape
        for part in pixels:
            if list(part.shape[1:]) != [channels, height, width]:
                found = " x ".join(map(str, (*part.shape[2:], part.shape[1])))
                raise ValueError(
                    f"an image is {found} (height x width x channels), the model makes {height} x {width} x {channels}"
                )
        together = torch.cat(pixels)
        if len(together) not in (1, count):
            raise ValueError(f"{len(together)} images for {count} labels; give one for each, or one for all")
        return together * 2 - 1

    def _levels(self, picture: Image.Image) -> np.ndarray:
        """Return a picture as float32 (H, W, C) in [0, 1]; of one in the colours of the colour map, its levels."""
        colormap = self.config.colormap
        if self.config.image_shape[2] == 3:
            return np.asarray(picture.convert("RGB"), np.float32) / 255
        if not colormap or picture.mode == "L":
            return np.asarray(picture.convert("L"), np.float32)[:, :, None] / 255
        palette = np.frombuffer(bytes.fromhex(colormap["palette"]), np.uint8).reshape(-1, 3)
        if picture.mode == "P" and picture.getpalette() == palette.flatten().tolist():
            return np.asarray(picture, np.float32)[:, :, None] / 255
        # The nearest colour; where several levels share it, their mean.
        colours, of_level = np.unique(palette, axis=0, return_inverse=True)
        levels = np.bincount(of_level.ravel(), np.arange(len(palette))) / np.bincount(of_level.ravel())
        wanted, of_pixel = np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0, return_inverse=True)
        entries = colours.astype(np.float32)  # argmin |w - e|^2 = argmin |e|^2 - 2 w.e
        nearest = (np.square(entries).sum(1) - 2 * wanted.astype(np.float32) @ entries.T).argmin(1)
        found = levels[nearest][of_pixel.ravel()]
        return found.reshape(picture.height, picture.width, 1).astype(np.float32) / 255

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Return images float32 (B, C, H, W) around [-1, 1] of normalised latents (B, c, h, w).

        The nearest code vectors are chosen in float32: in bfloat16 up to a tenth of them would be others. Of the
        squared distance |z|^2 - 2 z.c + |c|^2 only what differs between codes is computed. On a CPU `argmin` takes half
        as long again as `min`.
        """
        device = latents.device
        mean, std = (
            torch.tensor(values, device=device)[:, None, None]
            for values in (self.config.latent_mean, self.config.latent_std)
        )
        tokens = (latents.float() * std + mean).permute(0, 2, 3, 1)
        codes = self.vqvae.quantize.embedding.weight
        with torch.autocast(device.type, enabled=False):
            exact = codes.float()
            distances = torch.addmm(exact.square().sum(1), tokens.flatten(0, 2), exact.T, alpha=-2)
            nearest = distances.min(dim=1).indices
        quantized = codes[nearest].view(tokens.shape).permute(0, 3, 1, 2).contiguous()
        return self.vqvae.decode(quantized, force_not_quantize=True).sample.float()

    def _label_indices(self, class_labels: int | str | Sequence[int | str]) -> list[int]:
        """Return labels as indices; names and indices may be mixed."""
        classes = self.config.classes
        wanted = [class_labels] if isinstance(class_labels, int | str) else list(class_labels)
        for label in wanted:
            if label not in classes if isinstance(label, str) else not 0 <= label < len(classes):
                raise ValueError(
                    f"class {label!r} is unknown; the model knows {', '.join(classes)} (0 to {len(classes) - 1})"
                )
        return [classes.index(label) if isinstance(label, str) else int(label) for label in wanted]

    def _condition_values(self, wanted: dict[str, Any], count: int) -> torch.Tensor | None:
        """Return the conditions of `count` labels, normalised, float32 (count, k), or None for a model without."""
        known = self.config.conditions or {"names": [], "mean": [], "std": []}
        for name, value in wanted.items():
            if name not in known["names"]:
                listed = ", ".join(known["names"]) or "none"
                raise ValueError(f"condition {name!r} is unknown; the conditions of this model are: {listed}")
            if isinstance(value, Sequence) and len(value) != count:
                raise ValueError(f"{len(value)} values of condition {name!r} for {count} labels; give one for each")
        columns = []
        for name, mean, std in zip(known["names"], known["mean"], known["std"], strict=True):
            value = wanted.get(name)
            values = value if isinstance(value, Sequence) else [value] * count
            columns.append([math.nan if v is None else (v - mean) / std for v in values])
        return torch.tensor(columns, dtype=torch.float32).T if columns else None

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """Load a pipeline folder; where mdaug is installed, its own code is used and none from the folder.

        Arguments and errors are those of `diffusers.DiffusionPipeline.from_pretrained`.
        """
        if __name__.startswith("mdaug.") and "unet" not in kwargs:
            # diffusers takes a component of a module outside of it only once that module is imported.
            code = sys.modules.setdefault("hybrid_unet", importlib.import_module("mdaug.models.hybrid_unet"))
            options = {name: kwargs[name] for name in ("torch_dtype", "dtype", "revision", "token") if name in kwargs}
            kwargs["unet"] = code.HybridUNet2DModel.from_pretrained(
                pretrained_model_name_or_path, subfolder="unet", **options
            )
        return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:
        """Write a folder that diffusers alone loads: safetensors, the code of pipeline and U-Net, and a README.md.

        Arguments are those of `diffusers.DiffusionPipeline.save_pretrained`.

        Raises:
            ValueError: asked to upload (see `push_to_hub`), or to pickle the weights.
        """
        if not kwargs.get("safe_serialization", True):
            raise ValueError("safe_serialization is False; weights are written as safetensors only, leave it out")
        if kwargs.get("push_to_hub"):  # diffusers would upload the folder before it is complete
            raise ValueError("save_pretrained cannot upload; use push_to_hub(repo_id), which uploads the whole folder")
        folder = Path(save_directory)
        self.register_to_config(unet=("hybrid_unet", type(self.unet).__name__))
        super().save_pretrained(folder, **kwargs)
        for config in (folder / "model_index.json", *folder.glob("*/*config.json")):
            content = json.loads(config.read_text(encoding="utf-8"))
            if content.pop("_name_or_path", None) is not None:  # a path of this machine
                config.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        (folder / "pipeline.py").write_text(_SOURCE, encoding="utf-8")
        shutil.copyfile(inspect.getfile(type(self.unet)), folder / "unet" / "hybrid_unet.py")
        (folder / "README.md").write_text(self.model_card(), encoding="utf-8")

    def push_to_hub(
        self,
        repo_id: str,
        commit_message: str = "Upload MicroDopplerPipeline",
        private: bool | None = None,
        token: str | None = None,
        create_pr: bool = False,
    ) -> str:
        """Upload the folder of `save_pretrained`, its model card included, and return the address of the commit.

        diffusers' own method would put a generic card in the place of ours. Arguments and errors are those of
        `diffusers.DiffusionPipeline.push_to_hub` and of huggingface_hub.
        """
        hub = HfApi(token=token)
        name = hub.create_repo(repo_id, private=private, exist_ok=True).repo_id
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return str(
                hub.upload_folder(repo_id=name, folder_path=folder, commit_message=commit_message, create_pr=create_pr)
            )

    def model_card(self) -> str:
        """Return the README.md of the pipeline folder: how to load it, its classes, and what it was trained on."""
        height, width, channels = self.config.image_shape
        noise = self.scheduler.config
        predicts = noise.get("prediction_type", "flow_prediction")
        path = "flow matching" if predicts == "flow_prediction" else f"{noise.beta_schedule} betas, predicts {predicts}"
        if noise.get("rescale_betas_zero_snr"):
            path += ", zero terminal SNR"
        return _CARD.format(
            height=height,
            width=width,
            mode="RGB" if channels == 3 else "grey",
            latents=" x ".join(str(side) for side in self.config.latent_shape),
            scheduler=f"{type(self.scheduler).__name__}, {path}",
            steps="Distilled: 1 to 4 steps.\n" if type(self.scheduler).__name__ in DISTILLED else "",
            label=json.dumps(self.config.classes[0], ensure_ascii=False),
            conditions=self._conditions_card(),
            table="\n".join(
                f"| {label} | {name}{' (auxiliary)' if name in (self.config.auxiliary or ()) else ''} |"
                for label, name in enumerate(self.config.classes)
            ),
            origin=self._origin(),
        )

    def _conditions_card(self) -> str:
        """Return the part of the README.md on conditions, empty for a model without."""
        if not self.config.conditions:
            return ""
        names, mean, std, _ = (self.config.conditions[key] for key in ("names", "mean", "std", "values"))
        rows = "\n".join(f"| {n} | {m:.4g} | {s:.4g} |" for n, m, s in zip(names, mean, std, strict=True))
        return f"""
It takes conditions beside the class, such as `conditions={{{json.dumps(names[0])}: {mean[0]:.4g}}}`; the model chooses
those that are not given.

| condition | mean in training | standard deviation |
|---|---|---|
{rows}
"""

    def _origin(self) -> str:
        training = self.config.training
        if training is None:
            return ""
        rows = [f"| {role} | sha256 `{content_hash}` |" for role, content_hash in sorted(training["made_from"].items())]
        rows += [f"| validation {name} | {value:.4g} |" for name, value in sorted(training["metrics"].items())]
        return "\n".join(["", "## Training", "", "| what | value |", "|---|---|", *rows, ""])


_CARD = """---
library_name: diffusers
tags: [micro-doppler, radar, spectrogram, latent-diffusion]
---
# Class-conditional micro-Doppler spectrograms

A latent diffusion pipeline for {height} x {width} {mode} spectrograms (latents {latents}).
Scheduler: {scheduler}.
{steps}
With torch, diffusers, accelerate and safetensors installed, run in this folder:

```python
import numpy as np
import torch
from diffusers import DiffusionPipeline

folder = "."  # this folder
pipe = DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)
generator = [torch.Generator().manual_seed(seed) for seed in range(4)]
images = pipe(class_labels={label}, num_images_per_prompt=4, generator=generator).images
images[0].save("sample.png")
```

`trust_remote_code` runs `pipeline.py` and `unet/hybrid_unet.py` of this folder. With mdaug installed
no code of the folder is needed:

```python
from mdaug import MicroDopplerPipeline

pipe = MicroDopplerPipeline.from_pretrained(".")
```

| label | class |
|---|---|
{table}
{conditions}{origin}"""
