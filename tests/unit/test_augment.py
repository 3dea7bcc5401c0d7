"""Augmentation: what it may change, what decides it, and in which share of an epoch it is seen."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mdaug import augment
from mdaug.augment import RICHER, TODAY, Policy
from mdaug.images import in_range
from mdaug.training.augmented_images import Views
from mdaug.training.latents import CopyOrder
from mdaug.training.options_vqvae import EncodeConfig
from shards.dataset import ShardDataset
from shards.order import EpochOrder
from tests.toy import toy_packed


def config(**changes) -> EncodeConfig:
    return EncodeConfig(Path("packed"), Path("vqvae"), Path("out"), **changes)


def applied(images: torch.Tensor, names, seed: int = 0, **options) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return augment.transform(images, augment.draw(rng, names, len(images), probability=1), rng, **options)


@pytest.mark.parametrize("channels", [1, 3])
def test_zeros_leave_every_pixel_as_it_is(channels):
    images = 2 * torch.rand(3, channels, 16, 24) - 1
    rows = np.zeros((3, augment.SIZE), np.float32)
    assert torch.equal(augment.transform(images, rows, np.random.default_rng(0)), images)


def test_a_row_is_zero_exactly_where_nothing_was_done():
    rows = augment.draw(np.random.default_rng(0), list(augment.PLACES), 500)
    on = np.stack([(rows[:, places] != 0).any(1) for places in augment.PLACES.values()], axis=1)
    assert 0.4 < on.mean() < 0.6
    image = 2 * torch.rand(1, 1, 32, 32) - 1
    untouched = augment.transform(image.expand(500, -1, -1, -1), rows * ~on.any(1)[:, None], np.random.default_rng(1))
    assert torch.equal(untouched, image.expand(500, -1, -1, -1))
    assert (np.abs(rows) <= 2).all()


def test_other_transforms_do_not_change_what_one_does():
    alone, among = (augment.draw(np.random.default_rng(3), names, 50) for names in (["gain"], augment.SAFE))
    assert np.array_equal(alone[:, augment.PLACES["gain"]], among[:, augment.PLACES["gain"]])
    assert not alone[:, augment.PLACES["roll"]].any()


def test_the_copy_of_an_image_is_decided_by_seed_key_and_copy():
    first = augment.draw(augment.generator_at(0, "walk_1", 1), augment.SAFE)
    assert np.array_equal(first, augment.draw(augment.generator_at(0, "walk_1", 1), augment.SAFE))
    for other in ((1, "walk_1", 1), (0, "walk_2", 1), (0, "walk_1", 2)):
        assert not np.array_equal(first, augment.draw(augment.generator_at(*other), augment.SAFE))


def test_roll_moves_time_round_and_nothing_else():
    image = 2 * torch.rand(1, 1, 8, 16) - 1
    (moved,) = applied(image, ["roll"])
    assert any(torch.equal(moved, image[0].roll(k, dims=2)) for k in range(1, 16))


def test_safe_transforms_keep_the_direction_of_the_motion_and_the_order_in_time():
    """A flip would make coming of leaving, or standing up of sitting down."""
    images = torch.full((200, 1, 64, 64), -1.0)
    images[:, :, 8:16, 10:20] = 1.0  # first fast towards the radar,
    images[:, :, 18:26, 24:30] = 1.0  # then slower
    names = [name for name in augment.SAFE if name != "roll"]  # it turns the order round the edge
    bright = applied(images, names)[:, 0] > 0.5
    assert not bright[:, 32:].any()
    time = torch.arange(64.0)
    fast, slow = (bright[:, rows].sum(1) for rows in (slice(0, 16), slice(19, 32)))
    seen = (fast.sum(1) > 0) & (slow.sum(1) > 0)
    centres = [(part * time).sum(1)[seen] / part.sum(1)[seen] for part in (fast, slow)]
    assert seen.sum() > 150
    assert (centres[0] < centres[1]).all()
    flipped = applied(images, ["flip_doppler"])
    assert torch.equal(flipped, images.flip(2))


def test_shift_fills_with_the_floor():
    images = torch.ones(40, 1, 16, 32)
    moved = applied(images, ["shift"], floor=[-0.5])
    assert set(moved.unique().tolist()) == {-0.5, 1.0}
    assert 0.1 < (moved == -0.5).float().mean() < 0.15  # a quarter at most, an eighth on average
    # from one side only: no column of the floor lies between two of the image
    assert ((moved[:, 0, 0].diff(dim=1) != 0).sum(1) <= 1).all()


def test_colours_stay_on_their_map(tmp_path):
    """Interpolation, gain or noise would make colours that no level has."""
    palette = torch.tensor([[-1.0, -1.0, 0.0], [0.0, 1.0, 0.0], [1.0, -1.0, -1.0]])
    images = palette[torch.randint(3, (50, 32, 32), generator=torch.Generator().manual_seed(0))].movedim(-1, 1)
    names = [name for name in augment.PLACES if name not in augment.LEVELS_ONLY]
    colours = applied(images, names, floor=palette[0].tolist()).movedim(1, -1).flatten(0, 2).unique(dim=0)
    assert {tuple(colour) for colour in colours.tolist()} == {tuple(colour) for colour in palette.tolist()}

    images = ShardDataset(toy_packed(tmp_path / "packed", train=8, val=4) / "train")
    assert "noise" in Views(images, 2, augment.SAFE, 0, None).names
    images.index["image_shape"] = [16, 16, 3]
    assert not {"gain", "noise"} & set(Views(images, 2, augment.SAFE, 0, None).names)


def test_the_views_of_an_image_are_itself_and_its_copies(tmp_path):
    images = ShardDataset(toy_packed(tmp_path / "packed", train=8, val=4) / "train")
    views = Views(images, 3, augment.SAFE, 0, [0])
    assert len(views) == 32
    assert [views.key(j) for j in range(4, 8)] == [images.keys[1], *(f"{images.keys[1]}_a{c}" for c in (1, 2, 3))]
    assert torch.equal(views[4], in_range(Views(images, 0, augment.SAFE, 0, [0])[1]))
    assert not views.row(4).any()
    assert torch.equal(
        views[6], Views(images, 2, augment.SAFE, 0, [0])[5]
    )  # copy 2 of image 1, however many copies there are
    images.key = lambda i: "k" * 80
    names = {views.key(j) for j in range(4, 8)}
    assert len(names) == 4
    assert max(map(len, names)) == 80


def test_copies_change_neither_the_length_nor_the_balance_of_an_epoch():
    plain = EpochOrder(50, seed=1)
    order = CopyOrder(EpochOrder(50, seed=1), [(50, 4)], seed=1, probability=0.3)
    items = [order.index(position) for position in range(200 * 50)]
    assert [item // 5 for item in items] == [plain.index(position) for position in range(200 * 50)]
    shown = Counter(item % 5 for item in items)
    assert 0.28 < 1 - shown[0] / len(items) < 0.32
    assert max(shown[copy] for copy in range(1, 5)) < 1.15 * min(shown[copy] for copy in range(1, 5))
    assert [order.index(position) for position in (7, 9000, 7)] == [items[7], items[9000], items[7]]
    assert {CopyOrder(plain, [(50, 4)], 1, 0.0).index(position) % 5 for position in range(100)} == {0}
    assert {CopyOrder(plain, [(50, 4)], 1, 1.0).index(position) % 5 for position in range(100)} == {1, 2, 3, 4}


def test_unknown_transforms_and_negative_numbers_are_refused():
    assert config(augment_with="roll, gain").augment_with == ["roll", "gain"]
    with pytest.raises(ValueError, match="augment_with=mirror must be one of roll, shift"):
        config(augment_with="mirror")
    with pytest.raises(ValueError, match="augment_copies=-1"):
        config(augment_copies=-1)


def test_a_policy_keeps_what_it_did_and_does_it_again_to_one_image_or_many():
    images = np.random.default_rng(0).integers(0, 256, (6, 24, 32, 1), dtype=np.uint8)
    policy = replace(RICHER, time_mask=0.1, doppler_mask=0.1)
    did = policy.draw(6, np.random.default_rng(1))
    together = policy.apply(images, did)
    assert together.dtype == np.uint8
    assert together.shape == images.shape
    assert np.array_equal(together, policy(images, np.random.default_rng(1)))
    assert not np.array_equal(together, policy(images, np.random.default_rng(2)))
    for i in range(6):
        history = json.loads(json.dumps({name: [values[i].item()] for name, values in did.items()}))
        assert np.array_equal(policy.apply(images[i : i + 1], history)[0], together[i])
    levels = torch.from_numpy(np.moveaxis(images, -1, 1).copy()).float() / 127.5 - 1
    assert np.array_equal(((policy.apply(levels, did) + 1) * 127.5).round().byte().numpy()[:, 0], together[..., 0])


def test_a_policy_without_strength_changes_nothing_and_its_json_brings_it_back():
    images = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    assert np.array_equal(Policy()(images, np.random.default_rng(0)), images)
    policy = replace(RICHER, copies=3, seed=7)
    assert Policy.from_json(json.loads(json.dumps(policy.to_json()))) == policy
    with pytest.raises(ValueError, match="no 'rol'; it has shift"):
        Policy.from_json({"rol": 1})
    with pytest.raises(ValueError, match="stretch=2"):
        Policy(stretch=2)


def test_the_draw_of_a_transform_does_not_depend_on_the_others():
    alone, among = (
        policy.draw(9, np.random.default_rng(0)) for policy in (Policy(gain=0.1), replace(RICHER, gain=0.1))
    )
    assert np.array_equal(alone["gain"], among["gain"])
    assert not alone["stretch"].any()


def test_an_event_is_never_torn_where_time_does_not_go_round():
    image = np.zeros((1, 8, 64, 1), np.uint8)
    image[:, :, 20:44] = 200
    images = np.repeat(image, 100, axis=0)
    for circular, torn in ((False, False), (True, True)):
        moved = Policy(shift=0.5, circular=circular)(images, np.random.default_rng(0))[:, 0, :, 0] > 100
        edges = (np.diff(moved.astype(int), axis=1) != 0).sum(axis=1)
        inside = moved[:, 0] & moved[:, -1]  # cut by the edge of the picture, with a part at either end
        assert inside.any() == torn
        assert (edges <= 2).all()


def test_stretch_keeps_the_middle_and_changes_the_length():
    image = np.zeros((1, 4, 101, 1), np.uint8)
    image[:, :, 40:61] = 255
    did = Policy(stretch=0.5, circular=False).draw(1, np.random.default_rng(0)) | {"stretch": [float(np.log(1.5))]}
    out = Policy(stretch=0.5, circular=False).apply(image, did)[0, 0, :, 0] > 127
    assert abs(out.sum() - 31) <= 1
    assert abs(np.flatnonzero(out).mean() - 50) < 0.6


def test_doppler_is_scaled_about_zero():
    image = np.zeros((1, 65, 4, 1), np.uint8)
    image[:, [16, 32, 48]] = 255  # -16, 0 and 16 bins
    policy = Policy(doppler_scale=0.25)
    did = policy.draw(1, np.random.default_rng(0)) | {"doppler_scale": [float(np.log(1.25))]}
    assert np.flatnonzero(policy.apply(image, did)[0, :, 0, 0] > 127).tolist() == [12, 32, 52]


def test_what_todays_policy_does_lies_within_its_strengths():
    did = TODAY.draw(500, np.random.default_rng(0))
    assert np.abs(did["shift"]).max() <= 0.5
    assert np.abs(did["gain"]).max() <= np.float32(0.1)
    assert (did["noise"] >= 0).all()
    assert not did["doppler_scale"].any()
