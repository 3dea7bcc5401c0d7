"""The samples of one shard: denoised in batches, judged, made again where the sifter rejects them, and encoded."""

from __future__ import annotations

import io
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from mdaug.generation.plan import Plan
from mdaug.generation.sources import Source
from mdaug.measures.sifter import Sifter
from shards.colormap import colormap
from shards.errors import UserError

NOT_A_NUMBER = "not a number"
Members = tuple[str, dict[str, bytes]]


@dataclass
class Candidate:
    """An image made for a sample, and the verdict on it.

    Attributes:
        sample: index of the sample.
        number: 0 for its first candidate.
        label: its class.
        seed: of its `torch.Generator`.
        pixels: uint8 (H, W, C).
        source: what it was redrawn from, or None.
        reason: why it is not kept, or "".
        score: probability of its class, in [0, 1]; None without a sifter.
        excess: largest ratio of a measure of the sifter to its limit; at most 1 within the limits.
    """

    sample: int
    number: int
    label: int
    seed: int
    pixels: np.ndarray
    source: Source | None = None
    reason: str = ""
    score: float | None = None
    excess: float = 0.0


def make_shard(
    plan: Plan,
    shard: int,
    sample: Callable[[np.ndarray, int], torch.Tensor],
    sifter: Sifter | None,
    threads: ThreadPoolExecutor,
    update: Callable[[int], None],
    sources: Mapping[int, Source] | None = None,
) -> tuple[Iterator[Members], Callable[[], dict]]:
    """Make the samples of a shard; batches are formed within it, so they depend on the plan alone.

    With a sifter the rejected samples of a round are made again in the next, until all are accepted or the plan's
    number of candidates is reached: then the best candidate of a sample is kept, and its description says so.

    Args:
        plan: what to make.
        shard: number of the shard.
        sample: (sample indices, candidate number) -> images, float (B, C, H, W) in [0, 1].
        sifter: judges the images, or None.
        threads: where judging and encoding run.
        update: called with the number of samples accepted in each step.
        sources: sample index -> what it is redrawn from; samples of one strength are denoised together.

    Returns:
        (key, members) in the order of the samples, to be read once; and a function that gives the statistics of the
        sifter after that.
    """
    waiting, number = plan.samples(shard), 0
    parts: list[Future] = []
    best: dict[int, Candidate] = {}
    tally = _Tally(list(plan.counts))
    while len(waiting):
        # Denoise the samples of this round; threads judge and encode each batch meanwhile.
        judged = []
        for batch in _batches(waiting, plan.batch_size, sources):
            judged.append(threads.submit(_finish, plan, sifter, batch, number, sample(batch, number), sources))
            if sifter is None:
                update(len(batch))
        parts += judged
        if sifter is None:
            break
        # The rejected ones go into the next round, and the best candidate of each is remembered.
        number += 1
        rejected = [candidate for future in judged for candidate in future.result()[1]]
        tally.count(plan.labels(waiting), rejected)
        update(len(waiting) - len(rejected))
        for candidate in rejected:
            if candidate.sample not in best or candidate.excess < best[candidate.sample].excess:
                best[candidate.sample] = candidate
        waiting = np.array([candidate.sample for candidate in rejected], dtype=np.int64)
        if number == sifter.max_candidates:
            kept = [best[i] for i in waiting.tolist()]
            tally.give_up(kept)
            update(len(kept))
            parts.append(threads.submit(_give_up, plan, kept))
            break
    return _in_order(parts), lambda: {**tally.record, "sifter": sifter.hash} if sifter else {}


def _batches(samples: np.ndarray, size: int, sources: Mapping[int, Source] | None) -> Iterator[np.ndarray]:
    """Yield sample indices in batches of at most `size`, all of one strength."""
    strengths = np.array([sources[sample].strength if sources else 0 for sample in samples.tolist()])
    for strength in np.unique(strengths):
        alike = samples[strengths == strength]
        yield from (alike[at : at + size] for at in range(0, len(alike), size))


def _finish(
    plan: Plan,
    sifter: Sifter | None,
    batch: np.ndarray,
    number: int,
    images: torch.Tensor,
    sources: Mapping[int, Source] | None,
) -> tuple[list[Members], list[Candidate]]:
    """Return the members of the accepted images of a batch, and the rejected candidates."""
    # To 8 bits, and what each image is.
    finite = images.isfinite().flatten(1).all(dim=1).cpu().numpy()
    pixels = images.nan_to_num().mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    labels = plan.labels(batch)
    rows = zip(batch.tolist(), labels.tolist(), plan.seeds(batch, number).tolist(), pixels, strict=True)
    source_of = (sources or {}).get
    candidates = [Candidate(i, number, label, seed, image, source_of(i)) for i, label, seed, image in rows]
    # The verdicts; an image that is not a number is the worst there is.
    if sifter:
        for candidate, verdict in zip(candidates, sifter.judge(pixels, labels), strict=True):
            candidate.reason, candidate.score, candidate.excess = verdict
    for candidate, is_finite in zip(candidates, finite, strict=True):
        if not is_finite:
            candidate.reason, candidate.excess = NOT_A_NUMBER, float("inf")
    if sifter is None:
        return _encode(plan, candidates), []
    accepted = [candidate for candidate in candidates if not candidate.reason]
    return _encode(plan, accepted), [candidate for candidate in candidates if candidate.reason]


def _give_up(plan: Plan, kept: list[Candidate]) -> tuple[list[Members], list[Candidate]]:
    return _encode(plan, kept), []


def _encode(plan: Plan, candidates: list[Candidate]) -> list[Members]:
    classes = list(plan.counts)
    return [(plan.key(candidate.sample), _members(plan, classes, candidate)) for candidate in candidates]


def _members(plan: Plan, classes: list[str], candidate: Candidate) -> dict[str, bytes]:
    if candidate.reason == NOT_A_NUMBER:
        raise UserError(
            f"sample {candidate.sample} (class {classes[candidate.label]}, seed {candidate.seed}) is not a number in "
            f"precision '{plan.mixed_precision}' with guidance {plan.guidance_scale:g}; choose another "
            "--mixed_precision or a smaller --guidance_scale, and a new --output_dir"
        )
    meta = {"class": classes[candidate.label], "seed": candidate.seed, "source": "synthetic"}
    source = candidate.source
    conditions = plan.conditions_of(candidate.sample) if source is None else source.conditions
    meta |= {f"condition_{name}": value for name, value in conditions.items()}
    if source and plan.redraw:
        meta |= {"strength": source.strength, "from_key": source.key, "from_class": source.class_name}
        meta |= {"from_set": plan.redraw["hash"]}
    if candidate.score is not None:
        within = not candidate.reason
        meta |= {"candidate": candidate.number, "score": round(candidate.score, 4), "within_limits": within}
    if plan.include_real:  # readers want every sample of a set alike
        meta |= {"group": "", "original": ""}
    text = json.dumps(meta, ensure_ascii=False)
    return {"png": to_png(candidate.pixels, plan.colormap), "cls": str(candidate.label).encode(), "json": text.encode()}


def to_png(image: np.ndarray, colours: str | None = None) -> bytes:
    """Return uint8 (H, W, C) as PNG; levels of a colour map (C = 1) with its colours as their palette."""
    file = io.BytesIO()
    flat = image.squeeze(2) if image.shape[2] == 1 else image
    picture = colormap(colours).picture(flat) if colours else Image.fromarray(flat)
    picture.save(file, format="PNG")
    return file.getvalue()


def _in_order(parts: list[Future]) -> Iterator[Members]:
    """Yield the members of the (members, rejected) of each part in the order of their keys."""
    yield from sorted((pair for part in parts for pair in part.result()[0]), key=lambda pair: pair[0])


class _Tally:
    """Counts the verdicts of the sifter on a shard: class -> numbers."""

    def __init__(self, classes: list[str]):
        self.classes = classes
        self.record: dict[str, dict] = {"made": defaultdict(int), "rejected": {}, "beyond_limits": defaultdict(int)}

    def count(self, labels: np.ndarray, rejected: list[Candidate]) -> None:
        for label in labels.tolist():
            self.record["made"][self.classes[label]] += 1
        for candidate in rejected:
            reasons = self.record["rejected"].setdefault(self.classes[candidate.label], {})
            reasons[candidate.reason] = reasons.get(candidate.reason, 0) + 1

    def give_up(self, kept: list[Candidate]) -> None:
        for candidate in kept:
            self.record["beyond_limits"][self.classes[candidate.label]] += 1
