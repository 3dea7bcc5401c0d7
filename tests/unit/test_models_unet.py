from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from mdaug.models.hybrid_unet import AxialAttention, HybridUNet2DModel, SpatialAttention, WindowAttention
from mdaug.training.options_ldm import LDMConfig
from tests.tiny_pipeline import tiny_unet


def random_layer(kind, *args, **options):
    torch.manual_seed(0)
    layer = kind(*args, **options)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    # GroupNorm mixes all pixels; what is measured here is where attention reaches.
    layer.norm = torch.nn.Identity()
    return layer


def reached(layer, size: tuple[int, int], pixel: tuple[int, int]) -> set[tuple[int, int]]:
    """The pixels of the output that a change of one pixel of the input changes."""
    maps = torch.randn(1, 8, *size, generator=torch.Generator().manual_seed(1))
    changed = maps.clone()
    changed[:, :, pixel[0], pixel[1]] += 1
    difference = (layer(changed) - layer(maps)).abs().amax(dim=(0, 1))
    return {tuple(place) for place in (difference > 1e-6).nonzero().tolist()}


def block(rows: range, columns: range) -> set[tuple[int, int]]:
    return {(i, j) for i in rows for j in columns}


@pytest.mark.parametrize(
    ("size", "pixel"), [((8, 12), (5, 9)), ((9, 11), (1, 10)), ((9, 11), (8, 2)), ((3, 6), (2, 5))]
)
def test_a_window_sees_itself_and_nothing_else(size, pixel):
    layer = random_layer(WindowAttention, 8, 2, 4, window_size=4, shifted=False)
    rows = range(pixel[0] // 4 * 4, min(pixel[0] // 4 * 4 + 4, size[0]))
    columns = range(pixel[1] // 4 * 4, min(pixel[1] // 4 * 4 + 4, size[1]))
    assert reached(layer, size, pixel) == block(rows, columns)


@pytest.mark.parametrize("size", [(8, 12), (9, 11), (10, 7)])
def test_shifted_windows_join_neighbours_but_not_opposite_edges(size):
    layer = random_layer(WindowAttention, 8, 2, 4, window_size=4, shifted=True)
    assert reached(layer, size, (3, 3)) == block(range(2, 6), range(2, 6))  # four windows of the unshifted layer meet
    assert reached(layer, size, (0, 0)) == block(range(2), range(2))  # and the corner stays a corner


def test_window_attention_equals_attention_with_bias_computed_by_hand():
    layer = random_layer(WindowAttention, 8, 2, 4, window_size=4, shifted=False)
    maps = torch.randn(1, 8, 4, 4)
    query, key, value = (
        part.reshape(16, 2, 4).transpose(0, 1) for part in layer.to_qkv(maps[0].flatten(1).T).chunk(3, dim=1)
    )
    scores = query @ key.transpose(1, 2) / 2
    for i in range(16):
        for j in range(16):
            scores[:, i, j] += layer.relative_bias[:, i // 4 - j // 4 + 3, i % 4 - j % 4 + 3]
    attended = (scores.softmax(2) @ value).transpose(0, 1).reshape(16, 8)
    expected = maps + layer.to_out(attended).T.reshape(1, 8, 4, 4)
    torch.testing.assert_close(layer(maps), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(8, 12), (9, 11)])
def test_window_attention_is_the_same_with_and_without_gradients(size):
    layer = random_layer(WindowAttention, 8, 2, 4, window_size=4, shifted=True)
    maps = torch.randn(2, 8, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():  # a fused kernel; with gradients the formula is written out
        fused = layer(maps)
    torch.testing.assert_close(layer(maps).detach(), fused, rtol=1e-5, atol=1e-5)


def test_padding_of_windows_does_not_reach_a_pixel():
    """A map of 5 x 7 gives what the same windows give when each is attended alone, without padding."""
    layer = random_layer(WindowAttention, 8, 2, 4, window_size=4, shifted=False)
    maps = torch.randn(2, 8, 5, 7)
    whole = layer(maps)
    for rows in (slice(0, 4), slice(4, 5)):
        for columns in (slice(0, 4), slice(4, 7)):
            alone = layer(maps[:, :, rows, columns])
            torch.testing.assert_close(whole[:, :, rows, columns], alone, rtol=1e-4, atol=1e-5)


def test_axial_attention_sees_its_row_and_its_column():
    layer = random_layer(AxialAttention, 8, 2, 4)
    assert reached(layer, (5, 9), (3, 2)) == block(range(3, 4), range(9)) | block(range(5), range(2, 3))


def test_axial_heads_are_separate_for_time_and_doppler():
    layer = random_layer(AxialAttention, 8, 2, 4)
    layer.to_out.weight.data[:, 4:] = 0  # leaves the heads of the first half
    assert reached(layer, (5, 9), (3, 2)) == block(range(3, 4), range(9))
    layer = random_layer(AxialAttention, 8, 2, 4)
    layer.to_out.weight.data[:, :4] = 0
    assert reached(layer, (5, 9), (3, 2)) == block(range(5), range(2, 3))


def test_full_attention_sees_everything():
    assert reached(random_layer(SpatialAttention, 8, 2, 4), (3, 5), (1, 1)) == block(range(3), range(5))


def test_levels_get_their_attention_and_heads():
    unet = tiny_unet(block_out_channels=(8, 16, 16, 32), layers_per_block=2, num_heads=4)
    for level, down in enumerate(unet.down_blocks):
        layers = [*down.attentions, *unet.up_blocks[3 - level].attentions]
        assert {type(layer) for layer in layers} == {WindowAttention if level < 2 else AxialAttention}
        assert {layer.num_heads for layer in layers} == {4}
        if level < 2:
            assert [layer.shifted for layer in down.attentions] == [False, True]
            assert [layer.shifted for layer in unet.up_blocks[3 - level].attentions] == [False, True, False]
    assert [type(layer) for layer in unet.mid_block.attentions] == [SpatialAttention]
    kinds = {type(module) for module in tiny_unet(attention="full").modules()}
    assert SpatialAttention in kinds
    assert not kinds & {WindowAttention, AxialAttention}
    assert not any(isinstance(module, SpatialAttention) for module in tiny_unet(attention="none").modules())


def test_attention_is_chosen_for_each_level():
    unet = tiny_unet(block_out_channels=(8, 16, 16), attention="none,axial,window")
    for level, kind in enumerate([None, AxialAttention, WindowAttention]):
        for block in (unet.down_blocks[level], unet.up_blocks[2 - level]):
            assert {type(layer) for layer in getattr(block, "attentions", [])} == ({kind} if kind else set())
    assert [type(layer) for layer in unet.mid_block.attentions] == [SpatialAttention]

    def weights(attention: str) -> set[str]:
        return set(tiny_unet(block_out_channels=(8, 16, 16), attention=attention).state_dict())

    assert weights("hybrid") == weights("window,window,axial")
    assert weights("full") == weights("full,full,full")
    assert weights("none") == weights("none,none,none")


@pytest.mark.parametrize("attention", ["hybrid", "full", "none", "none,full,axial"])
def test_round_trip_through_disk_is_bitwise(tmp_path, attention):
    unet = tiny_unet(block_out_channels=(8, 16, 16), attention=attention, num_classes=5)
    unet.save_pretrained(tmp_path)
    loaded, report = HybridUNet2DModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert set(loaded.state_dict()) == {name for name, _ in unet.named_parameters()}
    inputs = (torch.randn(2, 4, 9, 7), torch.tensor([3, 900]), torch.tensor([0, 5]))
    assert torch.equal(unet(*inputs).sample, loaded(*inputs).sample)


@pytest.mark.parametrize("size", [(16, 16), (13, 9), (4, 32), (3, 5), (1, 1)])
def test_any_size_goes_in_and_comes_out(size):
    unet = tiny_unet(block_out_channels=(8, 16, 16))
    assert unet(torch.randn(2, 4, *size), 5, torch.tensor([0, 1])).sample.shape == (2, 4, *size)


@pytest.mark.parametrize("attention", ["hybrid", "full", "none", "window", "axial,none,none"])
def test_gradients_reach_every_parameter(attention):
    unet = tiny_unet(block_out_channels=(8, 16, 16), attention=attention)
    labels = torch.arange(4)
    unet(torch.randn(4, 4, 16, 16), torch.tensor([1, 10, 100, 999]), labels).sample.square().sum().backward()
    assert [name for name, value in unet.named_parameters() if value.grad is None or not value.grad.any()] == []


def test_a_fresh_network_is_zero_and_learns_from_there():
    torch.manual_seed(0)
    unet = HybridUNet2DModel(
        block_out_channels=(8, 16), layers_per_block=1, num_heads=2, norm_num_groups=4, window_size=4
    )
    inputs = (torch.randn(2, 4, 8, 8), 500, torch.tensor([0, 1]))
    assert not unet(*inputs).sample.any()
    target = torch.randn(2, 4, 8, 8)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-2)
    start = {name: value.detach().clone() for name, value in unet.named_parameters()}
    for _ in range(4):  # zeros open one after the other: output layer, last layers of the blocks, what is before them
        optimizer.zero_grad()
        (unet(*inputs).sample - target).square().mean().backward()
        optimizer.step()
    assert [name for name, value in unet.named_parameters() if torch.equal(value, start[name])] == []


def test_the_label_matters_and_null_is_a_label_of_its_own():
    unet = tiny_unet()
    latents = torch.randn(1, 4, 8, 8).expand(4, -1, -1, -1)
    outputs = unet(latents, 5, torch.arange(4)).sample
    assert len({tuple(output.flatten().tolist()) for output in outputs}) == 4


@pytest.mark.parametrize("label", [-1, 4])
def test_a_label_out_of_range_is_named(label):
    with pytest.raises(ValueError, match=f"{label} is out of range: the model knows 0 to 2 and 3"):
        tiny_unet()(torch.randn(1, 4, 8, 8), 5, torch.tensor([label]))
    with pytest.raises(ValueError, match="label of 'no class' is 3"):
        tiny_unet()(torch.randn(1, 4, 8, 8), 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block_out_channels": (8, 20), "num_heads": 8}, "level 1 has 20 channels, which num_heads = 8"),
        ({"block_out_channels": (8, 18)}, "level 1 has 18 channels, which norm_num_groups = 4"),
        ({"num_heads": 1}, "num_heads is 1; axial attention"),
        ({"block_out_channels": (0, 16)}, "the least of block_out_channels is 0"),
        ({"layers_per_block": 0}, "layers_per_block is 0; it must be at least 1"),
        ({"norm_num_groups": 0}, "norm_num_groups is 0; it must be at least 1"),
        ({"attention": "swin"}, "attention is 'swin'; it must be one of hybrid, full, none"),
        ({"attention": "none,axial,full"}, "for each of the 2 levels, fine to coarse"),
        ({"attention": "full,none", "block_out_channels": (8, 20), "num_heads": 8}, "level 1 has 20 channels"),
        ({"num_classes": 0}, "num_classes is 0"),
    ],
)
def test_impossible_networks_are_refused_with_their_numbers(options, message):
    with pytest.raises(ValueError, match=message):
        tiny_unet(**options)


def test_runs_in_bfloat16_and_under_autocast():
    unet = tiny_unet(block_out_channels=(8, 16, 16))
    latents, labels = torch.randn(2, 4, 9, 7), torch.tensor([0, 3])
    exact = unet(latents, 5, labels).sample
    with torch.autocast("cpu", torch.bfloat16):
        mixed = unet(latents, 5, labels).sample
    low = unet.to(torch.bfloat16)(latents.bfloat16(), 5, labels).sample
    for output in (mixed, low):
        assert output.dtype is torch.bfloat16
        assert (output.float() - exact).std() < 0.05 * exact.std()


@pytest.mark.slow
def test_compiles_as_one_graph():
    unet = tiny_unet()
    inputs = (torch.randn(2, 4, 9, 8), torch.tensor([1, 2]), torch.tensor([0, 3]))
    compiled = torch.compile(unet, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(*inputs).sample, unet(*inputs).sample)


@pytest.mark.parametrize("attention", ["hybrid", "window", "full,none", "hybrid,full", "swin", "none,full,axial", ""])
def test_options_accept_the_attention_that_the_network_accepts(attention):
    def accepted(build) -> bool:
        try:
            build()
        except ValueError:
            return False
        return True

    folders = {"data_dir": Path("packed"), "vqvae_path": Path("vqvae"), "output_dir": Path("ldm")}
    options = accepted(lambda: LDMConfig(**folders, block_out_channels=(8, 16), attention=attention))
    assert options == accepted(lambda: tiny_unet(block_out_channels=(8, 16), attention=attention))
    assert options == (attention in ("hybrid", "window", "full,none"))


@pytest.mark.parametrize(("shifted", "most"), [(False, 2), (True, 8)])
def test_windows_copy_their_pixels_as_seldom_as_can_be(shifted, most):
    """Elements copied, as multiples of the map: into windows and back; where shifted also two rolls, q, k and v, and
    what the stand-in for the kernel returns as it lies. Partitioned one by one, q, k and v made it 9 and 11."""

    class Copied(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if function.__name__.split(".")[0] in ("clone", "copy_", "roll", "constant_pad_nd"):
                self.elements += result.numel()
            return result

    layer = WindowAttention(32, 4, 8, window_size=4, shifted=shifted).eval()
    hidden = torch.randn(2, 32, 8, 8).contiguous(memory_format=torch.channels_last)
    fused = mock.patch.object(nn.functional, "scaled_dot_product_attention", lambda q, k, v, attn_mask: v)
    with torch.no_grad(), fused, Copied() as copied:
        layer(hidden)
    assert copied.elements <= 1.01 * most * hidden.numel()
