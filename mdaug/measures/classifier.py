"""The classifier of the experiment: a small ResNet or a timm model, from scratch and for a fixed number of steps."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from mdaug import augment, distributed
from mdaug.images import to_tensor
from shards.errors import UserError
from shards.order import EpochOrder

SMALL = "small"
WIDTHS = (16, 32, 64)
TRANSFORMS = ("roll", "gain", "noise")


class SmallResNet(nn.Module):
    """Three residual stages of 16, 32, 64 channels over (n, C, S, S) in [-1, 1], S a multiple of 16.

    GroupNorm instead of BatchNorm: the batch statistics of real and synthetic images differ, and a network with
    BatchNorm trained on the mixture would be judged on real images with statistics that fit neither.
    He et al., CVPR 2016; Wu and He, ECCV 2018.
    """

    def __init__(self, channels: int, num_classes: int):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(channels, WIDTHS[0], 5, stride=2, padding=2, bias=False), nn.GroupNorm(8, WIDTHS[0]), nn.ReLU()
        )
        self.stages = nn.Sequential(*(Block(a, b) for a, b in zip((WIDTHS[0], *WIDTHS), WIDTHS, strict=False)))
        self.head = nn.Linear(WIDTHS[-1], num_classes)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Return the (n, 64) activations before the last layer."""
        return self.stages(self.stem(images)).mean(dim=(2, 3))


class TimmModel(nn.Module):
    """Any classifier of timm, from scratch, its features separate from its last layer."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Return the (n, d) activations before the last layer."""
        return self.network.forward_head(self.network.forward_features(images), pre_logits=True)  # type: ignore[operator]

    def head(self, features: torch.Tensor) -> torch.Tensor:
        """Return the (n, num_classes) logits of features."""
        return self.network.get_classifier()(features)  # type: ignore[operator]


Classifier = SmallResNet | TimmModel


def build(network: str, channels: int, num_classes: int, image_size: int) -> Classifier:
    """Return an untrained classifier: "small" for SmallResNet, else the timm model of that name.

    Raises:
        UserError: timm is not installed or has no such model, or the model does not take such images.
    """
    if network == SMALL:
        return SmallResNet(channels, num_classes)
    try:
        import timm
    except ImportError:
        raise UserError(
            f"classifier is '{network}', which needs timm: pip install timm; 'small' works without it"
        ) from None
    options = {"in_chans": channels, "num_classes": num_classes}
    try:
        try:
            return TimmModel(timm.create_model(network, img_size=image_size, **options))
        except TypeError:  # a convolutional network has no such argument and takes any size
            return TimmModel(timm.create_model(network, **options))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise UserError(f"classifier is '{network}', which timm cannot build for these images: {error}") from None


class Block(nn.Module):
    """A residual block of two 3x3 convolutions that halves the resolution."""

    def __init__(self, channels_in: int, channels_out: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride=2, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(8, channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(8, channels_out)
        self.skip = nn.Conv2d(channels_in, channels_out, 1, stride=2, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (n, channels_out, S / 2, S / 2)."""
        h = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.skip(x) + self.norm2(self.conv2(h)))


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one CPU thread: more do not speed up so small a network, and they change the order of sums."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def train(
    images: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    transforms: bool,
    network: str = SMALL,
    device: torch.device | None = None,
) -> Classifier:
    """Train a new classifier for exactly `steps` optimizer steps and return it as it is then.

    No validation, no early stopping, no choice among checkpoints: held-out images do not influence training.

    Args:
        images: uint8 (n, S, S, C); a small set is repeated as often as the steps need.
        labels: int64 (n,).
        num_classes: outputs of the network.
        steps: optimizer steps, the same in every arm of an experiment.
        batch_size: images per step.
        learning_rate: peak of the one-cycle schedule of AdamW.
        seed: decides initial weights, order and transforms; same seed, same device, same result.
        transforms: whether to apply `label_safe_transform` to every batch.
        network: as in `build`.
        device: where to train (default: the device of this rank).
    """
    device = device or distributed.device()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build(network, images.shape[-1], num_classes, images.shape[1])
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps)
    order = EpochOrder(len(images), seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.backends.cudnn.flags(benchmark=False, deterministic=True):
        for step in range(steps):
            chosen = [order.index(position) for position in range(step * batch_size, (step + 1) * batch_size)]
            batch = to_tensor(images[chosen])
            if transforms:
                batch = label_safe_transform(batch, generator)
            loss = F.cross_entropy(
                model.head(model.features(batch.to(device))), torch.from_numpy(labels[chosen]).to(device)
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def label_safe_transform(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return (n, C, S, S) images moved in ways that cannot change what was measured, drawn anew for each image.

    A circular shift along time (the horizontal axis, any amount), an offset of at most 5 % of the pixel range (on a
    grey image in dB: the gain of the receiver), and white noise. Nothing is done along the Doppler axis: a shift or
    a flip there may be another motion.
    """
    rng = np.random.default_rng(int(torch.randint(2**62, (1,), generator=generator)))
    return augment.transform(images, augment.draw(rng, TRANSFORMS, len(images), probability=1), rng)


@torch.no_grad()
def outputs(model: Classifier, images: np.ndarray, batch_size: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """Return the predicted classes, int64 (n,), and the features, float64 (n, d), of uint8 (n, S, S, C) images."""
    device = next(model.parameters()).device
    features = torch.cat(
        [
            model.features(to_tensor(images[start : start + batch_size]).to(device))
            for start in range(0, len(images), batch_size)
        ]
    )
    return model.head(features).argmax(1).cpu().numpy(), features.double().cpu().numpy()
