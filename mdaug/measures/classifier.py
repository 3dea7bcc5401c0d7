"""The classifier of the experiment: a small ResNet or a timm model, from scratch, trained by one stated rule."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from mdaug import distributed
from mdaug.augment import Policy
from mdaug.images import to_tensor
from mdaug.measures.small_resnet import SmallResNet
from shards.errors import UserError
from shards.order import EpochOrder

SMALL = "small"
GOLDEN = (5**0.5 - 1) / 2
# When a training has settled, see `settled`. With the decay at the end it takes 800 to 3,200 steps.
SETTLED: Literal["settled"] = "settled"
WINDOW, FLOOR, CEILING = 200, 600, 2400  # steps
FALLS, SMALL_LOSS = 0.05, 0.02  # a share of the loss, and a loss
DECAY = 1 / 3  # of the steps at the full learning rate
WARM_UP = 50  # steps
TUNING = 0.3  # of the learning rate, for a training that goes on from another classifier


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


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one CPU thread: more do not speed up so small a network, and they change the order of sums."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@dataclass(frozen=True)
class Source:
    """Images that take a share of every batch beside the main ones.

    Attributes:
        images: uint8 (n, S, S, C).
        labels: int64 (n,), or probabilities float32 (n, num_classes).
        share: of the images of a batch, in (0, 1).
    """

    images: np.ndarray
    labels: np.ndarray
    share: float


def train(
    images: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    *,
    steps: int | Literal["settled"],
    batch_size: int,
    learning_rate: float,
    seed: int,
    policy: Policy | None = None,
    others: Sequence[Source] = (),
    floor: Sequence[float] | None = None,
    network: str = SMALL,
    device: torch.device | None = None,
    losses: list[float] | None = None,
    start: Classifier | None = None,
) -> Classifier:
    """Train a new classifier and return it as it is at the end.

    No validation, no early stopping, no choice among checkpoints: held-out images do not influence training. What a
    position of the stream of images shows is a function of seed and position; every class of a source is drawn equally
    often, however many images it has.

    Args:
        images: uint8 (n, S, S, C); a small set is repeated as often as the steps need.
        labels: int64 (n,), or probabilities float32 (n, num_classes).
        num_classes: outputs of the network.
        steps: optimizer steps, in one cycle; or "settled": at a constant learning rate until the training loss has
            settled (see `settled`), then a third as many steps in which the rate falls to 0.
        batch_size: images per step.
        learning_rate: peak of the schedule of AdamW; with `start` 0.3 of it is.
        seed: decides initial weights, order and transforms; same seed, same device, same result.
        policy: the transforms of every image; None: none.
        others: further images and their share of each batch.
        floor: the level of no echo of the transforms, see `augment.transform`.
        network: as in `build`.
        device: where to train (default: the device of this rank).
        losses: a list to which the loss of every step is appended.
        start: a classifier with the same network and outputs whose weights are the first ones; it stays as it is.
    """
    device = device or distributed.device()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build(network, images.shape[-1], num_classes, images.shape[1])
    if start is not None:
        model.load_state_dict(start.state_dict())
        learning_rate *= TUNING
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    fused = device.type in ("cpu", "cuda")
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.01, fused=fused)
    cycle = None
    if steps != SETTLED:
        cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps)
    sources = [Source(images, labels, 1 - sum(other.share for other in others)), *others]
    stream = _Stream(sources, num_classes, seed)
    rng = np.random.default_rng([seed, 1])
    past: list[float] = [] if losses is None else losses
    last = steps if steps != SETTLED else None  # the step at which training ends, once that is known
    step, decay_from = 0, 0
    with torch.backends.cudnn.flags(benchmark=False, deterministic=True):
        while step != last:
            if cycle is None:
                _set_rate(optimizer, learning_rate, step, decay_from, last)
            batch, target = stream.next(batch_size)
            if policy is not None:
                batch = policy(batch, rng, floor)
                if policy.mix:
                    share = rng.beta(policy.mix, policy.mix)
                    batch, target = (share * part + (1 - share) * part.roll(1, 0) for part in (batch, target))
            batch = batch.to(device, memory_format=torch.channels_last)
            loss = F.cross_entropy(model.head(model.features(batch)), target.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if cycle is not None:
                cycle.step()
            past.append(loss.item())
            step += 1
            if last is None and settled(past):
                decay_from, last = step, step + round(DECAY * step)
    return model.eval()


def settled(losses: Sequence[float]) -> bool:
    """Return whether a training loss has settled: looked at every 200 steps, from 600 on.

    It has if its mean over the last 200 steps is below 0.02, or less than 5 % below that over the 200 before; in any
    case after 2,400 steps.
    """
    if len(losses) < FLOOR or len(losses) % WINDOW:
        return False
    before, now = (float(np.mean(part)) for part in (losses[-2 * WINDOW : -WINDOW], losses[-WINDOW:]))
    return len(losses) >= CEILING or now < SMALL_LOSS or now > (1 - FALLS) * before


def _set_rate(optimizer: torch.optim.Optimizer, peak: float, step: int, decay_from: int, last: int | None) -> None:
    """Set the learning rate of a step: a short warm-up, a constant, and a straight line to 0 once the end is known."""
    rate = peak * min(1.0, (step + 1) / WARM_UP)
    if last is not None:
        rate *= (last - step) / (last - decay_from)
    for group in optimizer.param_groups:
        group["lr"] = rate


class _Stream:
    """The training images in their order: position p shows a source, of that a class in turn, of that an image."""

    def __init__(self, sources: Sequence[Source], num_classes: int, seed: int):
        self.images = [torch.from_numpy(np.ascontiguousarray(np.moveaxis(s.images, -1, 1))) for s in sources]
        self.targets = [_probabilities(source.labels, num_classes) for source in sources]
        self.ends = np.cumsum([source.share for source in sources])
        # Members of each class that is drawn by itself: all images where the labels are probabilities.
        self.classes = [
            [np.flatnonzero(s.labels == label) for label in np.unique(s.labels)]
            if s.labels.ndim == 1
            else [np.arange(len(s.labels))]
            for s in sources
        ]
        self.orders = [[EpochOrder(len(part), seed) for part in classes] for classes in self.classes]
        self.turns = [EpochOrder(len(classes), seed) for classes in self.classes]
        self.position, self.drawn = 0, [0] * len(sources)

    def next(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the next images, float32 (count, C, S, S) in [-1, 1], and their probabilities (count, classes)."""
        places = (np.arange(self.position, self.position + count) * GOLDEN) % 1  # evenly spread in every batch
        chosen = np.searchsorted(self.ends[:-1], places, side="right")
        self.position += count
        images, targets = [], []
        for source in np.unique(chosen):
            items = [self._item(source) for _ in range(int((chosen == source).sum()))]
            images.append(self.images[source][items])
            targets.append(self.targets[source][items])
        return torch.cat(images).float().div_(127.5).sub_(1), torch.cat(targets)

    def _item(self, source: int) -> int:
        position, self.drawn[source] = self.drawn[source], self.drawn[source] + 1
        classes = self.classes[source]
        label = self.turns[source].index(position)
        return int(classes[label][self.orders[source][label].index(position // len(classes))])


def _probabilities(labels: np.ndarray, num_classes: int) -> torch.Tensor:
    given = torch.from_numpy(labels)
    return F.one_hot(given.long(), num_classes).float() if labels.ndim == 1 else given.float()


def floor_of(images: np.ndarray) -> list[float]:
    """Return the level of no echo of uint8 (n, H, W, C) images, one per channel, in [-1, 1].

    Of levels the 10 % quantile; of colours the most frequent one.
    """
    pixels = images[:: max(1, len(images) // 200)].reshape(-1, images.shape[-1])
    if images.shape[-1] == 1:
        return [float(np.quantile(pixels, 0.1)) / 127.5 - 1]
    colours, counts = np.unique(pixels, axis=0, return_counts=True)
    return (colours[counts.argmax()] / 127.5 - 1).tolist()


@torch.no_grad()
def predict(
    model: Classifier,
    images: np.ndarray,
    policy: Policy | None = None,
    *,
    num_classes: int | None = None,
    floor: Sequence[float] | None = None,
    batch_size: int = 256,
) -> np.ndarray:
    """Return probabilities, float64 (n, K), of uint8 (n, S, S, C) images.

    Args:
        model: the classifier.
        images: what it looks at.
        policy: its `copies` transformed copies of each image are looked at, and the probabilities averaged.
        num_classes: K, where the last outputs of the network are other classes; default: all.
        floor: as in `train`.
        batch_size: images looked at at once.
    """
    device = next(model.parameters()).device
    copies: list[dict[str, np.ndarray]] = []
    if policy is not None:
        rng = np.random.default_rng([policy.seed, 2])
        copies = [policy.draw(len(images), rng) for _ in range(policy.copies)]
    parts = []
    for start in range(0, len(images), batch_size):
        part = images[start : start + batch_size]
        views = [part]
        if policy is not None and copies:
            chunk = slice(start, start + batch_size)
            views = [policy.apply(part, {name: v[chunk] for name, v in did.items()}, floor) for did in copies]
        logits = [model.head(model.features(to_tensor(view).to(device)))[:, :num_classes] for view in views]
        parts.append(torch.stack([torch.softmax(view.double(), 1) for view in logits]).mean(0).cpu())
    return torch.cat(parts).numpy()


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
