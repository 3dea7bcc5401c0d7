"""The denoiser: a diffusers U-Net with window attention in its fine levels and axial attention in its coarse ones.

This file imports torch and diffusers alone: it is shipped inside every pipeline folder.
"""

from __future__ import annotations

import math

import torch
from diffusers import ModelMixin, UNet2DModel  # noqa: F401  (diffusers looks for ModelMixin beside a component)
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import nn
from torch.nn import functional

KINDS = ("full", "none", "window", "axial")  # of attention, one at each level


class SpatialAttention(nn.Module):
    """Pre-norm multi-head self-attention over the pixels of a feature map, with a residual connection.

    Every pixel attends to every pixel; the subclasses narrow that. The output projection starts at
    zero, so that a fresh layer is the identity.

    Args:
        channels: channels C of the map, a multiple of `num_heads`.
        num_heads: attention heads; each is C / num_heads wide.
        norm_num_groups: groups of the GroupNorm before the attention.
    """

    def __init__(self, channels: int, num_heads: int, norm_num_groups: int):
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.GroupNorm(norm_num_groups, channels)
        self.to_qkv = nn.Linear(channels, 3 * channels)
        self.to_out = nn.Linear(channels, channels)
        nn.init.zeros_(self.to_out.weight)
        nn.init.zeros_(self.to_out.bias)

    def forward(self, hidden_states: torch.Tensor, temb: torch.Tensor | None = None) -> torch.Tensor:
        """Return hidden_states (B, C, H, W) plus what its pixels attend to; `temb` is ignored (diffusers passes it)."""
        batch, channels, height, width = hidden_states.shape
        tokens = self.norm(hidden_states).permute(0, 2, 3, 1)
        qkv = self.to_qkv(tokens).view(batch, height, width, 3, self.num_heads, channels // self.num_heads)
        attended = self.attend(*qkv.unbind(3)).reshape(batch, height, width, channels)
        return hidden_states + self.to_out(attended).permute(0, 3, 1, 2)

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Return the attended values; all of shape (B, H, W, heads, width of a head)."""
        # (B, heads, H W, d) and back
        query, key, value = (part.flatten(1, 2).transpose(1, 2) for part in (query, key, value))
        attended = functional.scaled_dot_product_attention(query, key, value)
        return attended.transpose(1, 2)


class WindowAttention(SpatialAttention):
    """Attention inside square windows with a learned relative position bias, after Swin (Liu et al. 2021, eq. 4).

    The map is padded at the bottom and the right to whole windows; padding is masked, so it never
    reaches a pixel. With `shifted` the windows are displaced by half a window, cyclically, and
    pixels that only the cyclic shift has brought together do not see each other. In a direction in
    which the map is no larger than the window, one window spans it and is not shifted.

    Args:
        window_size: side of the windows in pixels.
        shifted: displace the windows by window_size // 2.
    """

    def __init__(self, channels: int, num_heads: int, norm_num_groups: int, window_size: int, shifted: bool):
        super().__init__(channels, num_heads, norm_num_groups)
        self.window_size = window_size
        self.shifted = shifted
        # one bias per head and displacement (rows, columns) in [-(window - 1), window - 1]
        self.relative_bias = nn.Parameter(torch.empty(num_heads, 2 * window_size - 1, 2 * window_size - 1))
        nn.init.trunc_normal_(self.relative_bias, std=0.02)

    def forward(self, hidden_states: torch.Tensor, temb: torch.Tensor | None = None) -> torch.Tensor:
        """Return hidden_states (B, C, H, W) plus what its pixels attend to; `temb` is ignored (diffusers passes it)."""
        batch, channels, height, width = hidden_states.shape
        sides = (min(self.window_size, height), min(self.window_size, width))
        counts = (-(-height // sides[0]), -(-width // sides[1]))
        padding = (counts[0] * sides[0] - height, counts[1] * sides[1] - width)
        shift = tuple(side // 2 if self.shifted and count > 1 else 0 for side, count in zip(sides, counts, strict=True))
        windows, pixels, heads = counts[0] * counts[1], sides[0] * sides[1], self.num_heads

        # Pixels to windows, once for queries, keys and values: (B, H, W, C) -> (B, windows, pixels of a window, C).
        tokens = self.norm(hidden_states).permute(0, 2, 3, 1)
        if any(padding):  # padding by nothing would be a copy
            tokens = functional.pad(tokens, (0, 0, 0, padding[1], 0, padding[0]))
        if any(shift):
            tokens = tokens.roll((-shift[0], -shift[1]), dims=(1, 2))
        tokens = tokens.unflatten(2, (counts[1], sides[1])).unflatten(1, (counts[0], sides[0])).transpose(2, 3)
        qkv = self.to_qkv(tokens.reshape(batch, windows, pixels, channels))
        qkv = qkv.view(batch, windows, pixels, 3, heads, channels // heads)

        bias = self._bias(sides)
        if any(shift) or any(padding):
            # Windows differ in what they see. They count as heads: then bias and mask need no copy per sample.
            apart = self._apart((height, width), sides, counts, shift, hidden_states.device)
            bias = bias.expand(windows, -1, -1, -1).masked_fill(apart[:, None], float("-inf")).flatten(0, 1)
            query, key, value = qkv.permute(3, 0, 1, 4, 2, 5).reshape(3, batch, windows * heads, pixels, -1)
        else:
            query, key, value = qkv.flatten(0, 1).permute(2, 0, 3, 1, 4)
        attended = _biased_attention(query, key, value, bias.to(query.dtype))
        attended = attended.view(batch, windows, heads, pixels, -1).transpose(2, 3).reshape(tokens.shape)

        # Windows back to pixels.
        out = self.to_out(attended).transpose(2, 3).flatten(3, 4).flatten(1, 2)
        out = out.roll(shift, dims=(1, 2)) if any(shift) else out
        return hidden_states + out[:, :height, :width].permute(0, 3, 1, 2)

    def _bias(self, sides: tuple[int, int]) -> torch.Tensor:
        """Return the bias (heads, pixels, pixels) between the pixels of a window of these sides."""
        device = self.relative_bias.device
        rows, columns = (
            torch.arange(side, device=device)[:, None] - torch.arange(side, device=device) + self.window_size - 1
            for side in sides
        )
        pixels = sides[0] * sides[1]
        bias = self.relative_bias[:, rows[:, None, :, None], columns[None, :, None, :]]
        return bias.reshape(self.num_heads, pixels, pixels)

    @staticmethod
    def _apart(
        size: tuple[int, int],
        sides: tuple[int, int],
        counts: tuple[int, int],
        shift: tuple[int, ...],
        device: torch.device,
    ) -> torch.Tensor:
        """Return which pixels of a window must not see each other, bool (windows, pixels, pixels).

        Each pixel of the padded and shifted map gets a region number: pixels brought over the edge by
        the shift differ from those that were there, and padding is a region of its own, which leaves
        no row of the mask empty.
        """
        regions = []
        for length, side, count, offset in zip(size, sides, counts, shift, strict=True):
            position = torch.arange(count * side, device=device)
            wrapped = position >= count * side - offset
            outside = (position + offset) % (count * side) >= length
            regions.append(torch.where(outside, 2, wrapped.long()))
        region = 3 * regions[0][:, None] + regions[1]
        outside = (regions[0] == 2)[:, None] | (regions[1] == 2)
        region = torch.where(outside, -1, region)
        region = region.view(counts[0], sides[0], counts[1], sides[1]).transpose(1, 2).reshape(-1, sides[0] * sides[1])
        return region[:, :, None] != region[:, None, :]


def _biased_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Return softmax(q k^T / sqrt(d) + bias) v of (B, heads, n, d) and a bias (heads, n, n) that learns.

    PyTorch has no fused CPU kernel with a gradient for the bias, and its fallback spends more time on checks
    for empty rows than on the product: there the formula is written out.
    """
    if query.device.type == "cpu" and torch.is_grad_enabled():
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1) + bias
        return scores.softmax(-1) @ value
    return functional.scaled_dot_product_attention(query, key, value, attn_mask=bias[None])


class AxialAttention(SpatialAttention):
    """Attention along the two axes of a spectrogram, in parallel.

    The first half of the heads attends along time (the pixels of one row, W), the second half along
    Doppler (the pixels of one column, H). In parallel it costs the projections of one attention,
    where rows-then-columns would cost two; two such layers connect any pixel with any other.
    Sources: Ho et al. 2019 (axial attention), Dong et al. 2022 (CSWin: the heads split over the axes).
    """

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Return the attended values; all of shape (B, H, W, heads, width of a head)."""
        half = self.num_heads // 2
        along_time = self._rows(query[..., :half, :], key[..., :half, :], value[..., :half, :])
        columns = (part[..., half:, :].transpose(1, 2) for part in (query, key, value))
        along_doppler = self._rows(*columns).transpose(1, 2)
        return torch.cat([along_time, along_doppler], dim=3)

    @staticmethod
    def _rows(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Return attention within the rows (axis 2) of (B, rows, columns, heads, d)."""
        rows = query.shape[:2]
        query, key, value = (part.flatten(0, 1).transpose(1, 2) for part in (query, key, value))
        return functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).unflatten(0, rows)


class ConditionEmbedding(nn.Module):
    """Continuous conditions -> what is added to the time embedding.

    A value enters as sines and cosines of FREQUENCIES (Tancik et al. 2020, Fourier features), with a number that is 1
    where the condition is given. The last layer starts at zero, so conditions change nothing at first.

    Args:
        count: number k of conditions.
        channels: width of the time embedding.
    """

    # Periods of 16 to 2 standard deviations: the longest tells all values of a condition apart.
    FREQUENCIES = tuple(2.0**octave for octave in (-4, -3.5, -3, -2.5, -2, -1.5, -1))

    def __init__(self, count: int, channels: int):
        super().__init__()
        self.linear_1 = nn.Linear(count * (2 * len(self.FREQUENCIES) + 1), channels)
        self.linear_2 = nn.Linear(channels, channels)
        nn.init.zeros_(self.linear_2.weight)
        nn.init.zeros_(self.linear_2.bias)

    def forward(self, conditions: torch.Tensor) -> torch.Tensor:
        """Return (B, channels) of normalised values (B, k), NaN where a condition is not given."""
        given = ~conditions.isnan()
        angles = torch.stack([2 * math.pi * f * conditions.float().nan_to_num() for f in self.FREQUENCIES], dim=-1)
        waves = torch.cat([angles.sin(), angles.cos()], dim=-1) * given[..., None]
        features = torch.cat([waves, given[..., None]], dim=-1).flatten(1)
        return self.linear_2(functional.silu(self.linear_1(features.to(self.linear_1.weight.dtype))))


class HybridUNet2DModel(UNet2DModel):
    """Class-conditional `UNet2DModel` whose attention follows the level.

    With "hybrid", level i of n has window attention where i < n / 2, shifted in every second layer,
    and axial attention elsewhere; the middle block has full attention. Heads are counted, not their
    width: every level has `num_heads` of them. Feature maps of any size work, odd and non-square
    ones too: a level of odd size is halved upwards and the way back takes the size of its skip connection.

    Args:
        sample_size: height and width of the latents in pixels, for those who read the configuration.
        in_channels: channels of the noisy latents.
        out_channels: channels of the prediction.
        block_out_channels: channels of each level, fine to coarse.
        layers_per_block: residual layers of a level on the way down; one more on the way up.
        num_heads: attention heads at every level; even with "hybrid".
        window_size: side of the attention windows in pixels.
        num_classes: labels 0 ... num_classes - 1; label num_classes means "no class" (the null label).
        attention: "hybrid"; or "full" (every pixel sees every pixel), "none", "window" or "axial" at every level; or
            a kind for each level, fine to coarse, such as "none,window,axial,full". Unless every level has
            none, the middle block has full attention.
        dropout: dropout probability in the residual layers.
        norm_num_groups: groups of every GroupNorm.
        num_conditions: continuous conditions k beside the class.
        augment_size: numbers that describe how a training image was augmented; all zero for one that was not.

    Raises:
        ValueError: channels of a level that `num_heads` or `norm_num_groups` does not divide, and other
            impossible values, with the numbers.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] | None = None,
        in_channels: int = 4,
        out_channels: int = 4,
        block_out_channels: tuple[int, ...] = (256, 512, 768, 1024),
        layers_per_block: int = 2,
        num_heads: int = 16,
        window_size: int = 8,
        num_classes: int = 1,
        attention: str = "hybrid",
        dropout: float = 0.0,
        norm_num_groups: int = 32,
        num_conditions: int = 0,
        augment_size: int = 0,
    ):
        levels = len(block_out_channels)
        kinds = _kinds(attention, levels)
        _validate(block_out_channels, layers_per_block, num_heads, window_size, num_classes, kinds, norm_num_groups)
        prefixes = ["" if kind == "none" else "Attn" for kind in kinds]
        # The undecorated constructor: the stored configuration then holds the arguments above and nothing else.
        UNet2DModel.__init__.__wrapped__(
            self,
            sample_size=sample_size,
            in_channels=in_channels,
            out_channels=out_channels,
            down_block_types=tuple(f"{prefix}DownBlock2D" for prefix in prefixes),
            up_block_types=tuple(f"{prefix}UpBlock2D" for prefix in reversed(prefixes)),
            block_out_channels=tuple(block_out_channels),
            layers_per_block=layers_per_block,
            dropout=dropout,
            attention_head_dim=None,
            norm_num_groups=norm_num_groups,
            add_attention=any(prefixes),
            num_class_embeds=num_classes + 1,
        )
        self.num_classes = num_classes
        width = self.time_embedding.linear_2.out_features
        self.condition_embedding = ConditionEmbedding(num_conditions, width) if num_conditions else None
        # Without bias: an image as it is (all zeros) adds nothing, and nothing need be given when sampling.
        self.augment_embedding = nn.Linear(augment_size, width, bias=False) if augment_size else None
        # The upsamplers are called here rather than by their blocks, which cannot hit an odd size.
        self.upsamplers = nn.ModuleList(block.upsamplers[0] for block in self.up_blocks[:-1])
        for block in self.up_blocks:
            block.upsamplers = None

        def layer(level: int, kind: str, index: int) -> SpatialAttention:
            shape = (block_out_channels[level], num_heads, norm_num_groups)
            if kind == "window":
                return WindowAttention(*shape, window_size=window_size, shifted=index % 2 == 1)
            return AxialAttention(*shape) if kind == "axial" else SpatialAttention(*shape)

        for level, kind in enumerate(kinds):
            if kind != "none":
                for block in (self.down_blocks[level], self.up_blocks[levels - 1 - level]):
                    block.attentions = nn.ModuleList(layer(level, kind, index) for index in range(len(block.resnets)))
        if any(prefixes):
            self.mid_block.attentions = nn.ModuleList([layer(levels - 1, "full", 0)])
        self._zero_last_layers()

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        class_labels: torch.Tensor | None = None,
        return_dict: bool = True,
        conditions: torch.Tensor | None = None,
        augment: torch.Tensor | None = None,
    ) -> UNet2DOutput | tuple[torch.Tensor]:
        """Predict from noisy latents.

        Args:
            sample: noisy latents (B, in_channels, H, W).
            timestep: one timestep, or (B,).
            class_labels: int64 (B,) in [0, num_classes]; num_classes is the null label.
            return_dict: return a `UNet2DOutput` rather than a tuple.
            conditions: float32 (B, num_conditions), normalised, NaN where one is not given; None for none at all.
            augment: (B, augment_size), how each image was augmented (Karras et al. 2022, appendix F.2); None, as
                always when sampling, for images as they are.

        Raises:
            ValueError: no labels, conditions for a model without, or a label out of range (checked where labels lie on
                the CPU: elsewhere it would stall the device).
        """
        hidden, skips, embedding = self._down(sample, timestep, class_labels, conditions, augment)
        hidden = self.mid_block(hidden, embedding)
        for level, block in enumerate(self.up_blocks):
            count = len(block.resnets)
            hidden = block(hidden, skips[-count:], embedding)
            skips = skips[:-count]
            if level < len(self.upsamplers):
                hidden = self.upsamplers[level](hidden, output_size=skips[-1].shape[-2:])
        prediction = self.conv_out(self.conv_act(self.conv_norm_out(hidden)))
        return UNet2DOutput(sample=prediction) if return_dict else (prediction,)

    def features(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        class_labels: torch.Tensor,
        conditions: torch.Tensor | None = None,
        augment: torch.Tensor | None = None,
    ) -> list[torch.Tensor]:
        """Return what the levels and the middle block make of noisy latents, (B, channels, h, w) each, fine to coarse.

        Arguments are those of `forward`; the way back up is not computed.
        """
        hidden, skips, embedding = self._down(sample, timestep, class_labels, conditions, augment)
        found, at = [], 0  # conv_in is the first of the skips
        for block in self.down_blocks:
            at += len(block.resnets) + (block.downsamplers is not None)
            found.append(skips[at])
        return [*found, self.mid_block(hidden, embedding)]

    def _down(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        class_labels: torch.Tensor | None,
        conditions: torch.Tensor | None,
        augment: torch.Tensor | None,
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...], torch.Tensor]:
        """Return what the last level makes of noisy latents, what each layer before it made, and the embedding."""
        if class_labels is None:
            raise ValueError(f"class_labels are needed; the label of 'no class' is {self.num_classes}")
        if class_labels.device.type == "cpu" and not torch.compiler.is_compiling():
            self._check_labels(class_labels)
        timestep = torch.as_tensor(timestep, device=sample.device).expand(sample.shape[0])
        embedding = self.time_embedding(self.time_proj(timestep).to(self.time_embedding.linear_1.weight.dtype))
        embedding = embedding + self.class_embedding(class_labels.to(sample.device))
        if self.condition_embedding is not None:
            if conditions is None:
                conditions = sample.new_full((len(sample), self.config.num_conditions), math.nan)
            embedding = embedding + self.condition_embedding(conditions)
        elif conditions is not None:
            raise ValueError("conditions are given, but the model was trained without any")
        if self.augment_embedding is not None and augment is not None:
            embedding = embedding + self.augment_embedding(augment.to(embedding.dtype))

        hidden = self.conv_in(sample)
        skips = (hidden,)
        for block in self.down_blocks:
            hidden, outputs = block(hidden, embedding)
            skips += outputs
        return hidden, skips, embedding

    def _check_labels(self, class_labels: torch.Tensor) -> None:
        low, high = int(class_labels.min()), int(class_labels.max())
        if low < 0 or high > self.num_classes:
            raise ValueError(
                f"class label {low if low < 0 else high} is out of range: the model knows 0 to {self.num_classes - 1} "
                f"and {self.num_classes} for 'no class'"
            )

    def _zero_last_layers(self) -> None:
        """Start every residual layer as the identity and the network as zero (Dhariwal & Nichol 2021)."""
        blocks = [*self.down_blocks, self.mid_block, *self.up_blocks]
        for last in [*(resnet.conv2 for block in blocks for resnet in block.resnets), self.conv_out]:
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)


def _kinds(attention: str, levels: int) -> list[str]:
    """Return the kind of attention of each level, fine to coarse."""
    if attention == "hybrid":
        return ["window" if 2 * level < levels else "axial" for level in range(levels)]
    kinds = attention.split(",")
    if not set(kinds) <= set(KINDS) or len(kinds) not in (1, levels):
        raise ValueError(
            f"attention is '{attention}'; it must be one of hybrid, {', '.join(KINDS)}, or one of the last four for "
            f"each of the {levels} levels, fine to coarse, with commas between"
        )
    return kinds * levels if len(kinds) == 1 else kinds


def _validate(
    block_out_channels: tuple[int, ...],
    layers_per_block: int,
    num_heads: int,
    window_size: int,
    num_classes: int,
    kinds: list[str],
    norm_num_groups: int,
) -> None:
    if not block_out_channels:
        raise ValueError("block_out_channels is empty; give the channels of at least one level")
    for name, value in (
        ("the least of block_out_channels", min(block_out_channels)),
        ("layers_per_block", layers_per_block),
        ("num_heads", num_heads),
        ("window_size", window_size),
        ("num_classes", num_classes),
        ("norm_num_groups", norm_num_groups),
    ):
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")
    if "axial" in kinds and num_heads % 2:
        raise ValueError(
            f"num_heads is {num_heads}; axial attention gives half of them to each axis, so it must be even"
        )
    for level, channels in enumerate(block_out_channels):
        if channels % norm_num_groups:
            raise ValueError(
                f"level {level} has {channels} channels, which norm_num_groups = {norm_num_groups} does not divide"
            )
        attended = kinds[level] != "none" or (level == len(kinds) - 1 and set(kinds) != {"none"})
        if attended and channels % num_heads:
            raise ValueError(f"level {level} has {channels} channels, which num_heads = {num_heads} does not divide")
