"""The UNet of guided diffusion, written anew from its description, to check conversions against.

Dhariwal and Nichol, "Diffusion models beat GANs on image synthesis", NeurIPS 2021, section 3 and appendix: residual
blocks of BigGAN kind for resizing, attention at some resolutions, adaptive group normalisation. Module names are those
of the published checkpoints, the computation is spelled out: attention head by head, position by position.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F


class Residual(nn.Module):
    def __init__(self, n_in, n_out, n_time, scale_shift, resize=None):
        super().__init__()
        self.scale_shift, self.resize = scale_shift, resize
        self.in_layers = nn.Sequential(nn.GroupNorm(32, n_in), nn.SiLU(), nn.Conv2d(n_in, n_out, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(n_time, (1 + scale_shift) * n_out))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(32, n_out), nn.SiLU(), nn.Identity(), nn.Conv2d(n_out, n_out, 3, padding=1)
        )
        if n_in != n_out:
            self.skip_connection = nn.Conv2d(n_in, n_out, 1)

    def resized(self, x):
        if self.resize == "down":
            return (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4
        if self.resize == "up":
            return x.repeat_interleave(2, dim=-1).repeat_interleave(2, dim=-2)
        return x

    def forward(self, x, time):
        hidden = self.in_layers[2](self.resized(self.in_layers[1](self.in_layers[0](x))))
        time = self.emb_layers(time)[:, :, None, None]
        if self.scale_shift:
            scale, shift = time.chunk(2, dim=1)
            hidden = self.out_layers[0](hidden) * (1 + scale) + shift
        else:
            hidden = self.out_layers[0](hidden + time)
        hidden = self.out_layers[3](F.silu(hidden))
        x = self.resized(x)
        return hidden + (self.skip_connection(x) if hasattr(self, "skip_connection") else x)


class Attention(nn.Module):
    def __init__(self, n_channels, head_channels, new_order):
        super().__init__()
        self.head_channels, self.new_order = head_channels, new_order
        self.norm = nn.GroupNorm(32, n_channels)
        self.qkv = nn.Conv1d(n_channels, 3 * n_channels, 1)
        self.proj_out = nn.Conv1d(n_channels, n_channels, 1)

    def forward(self, x, time):
        batch, n_channels, *size = x.shape
        rows = self.qkv(self.norm(x).reshape(batch, n_channels, -1))
        d, results = self.head_channels, []
        for head in range(n_channels // d):
            # where query, key and value of this head begin among the 3 * n_channels rows
            if self.new_order:
                starts = [part * n_channels + head * d for part in range(3)]
            else:
                starts = [head * 3 * d + part * d for part in range(3)]
            query, key, value = (rows[:, start : start + d] for start in starts)
            weights = (query.transpose(1, 2) @ key / math.sqrt(d)).softmax(dim=-1)
            results.append(value @ weights.transpose(1, 2))
        return x + self.proj_out(torch.cat(results, dim=1)).reshape(batch, n_channels, *size)


class Resample(nn.Module):
    """A convolution that halves (`op`) or doubles (`conv`) the size, of networks without residual resizing."""

    def __init__(self, n_channels, direction):
        super().__init__()
        self.direction = direction
        if direction == "down":
            self.op = nn.Conv2d(n_channels, n_channels, 3, stride=2, padding=1)
        else:
            self.conv = nn.Conv2d(n_channels, n_channels, 3, padding=1)

    def forward(self, x, time):
        return self.op(x) if self.direction == "down" else self.conv(F.interpolate(x, scale_factor=2.0))


class First(nn.Conv2d):
    def forward(self, x, time):
        return super().forward(x)


class AuthorsUNet(nn.Module):
    """Defaults: a tiny network with all that the paper's has. `attention_levels` counts from the full size."""

    def __init__(
        self,
        width=32,
        multipliers=(1, 1, 2),
        attention_levels=(1, 2),
        n_res_blocks=1,
        head_channels=16,
        new_order=False,
        scale_shift=True,
        residual_resizing=True,
        n_in=2,
        n_out=4,
    ):
        super().__init__()
        self.width, n_time = width, 4 * width
        self.time_embed = nn.Sequential(nn.Linear(width, n_time), nn.SiLU(), nn.Linear(n_time, n_time))

        def layer(n_from, n_to, level):
            block = [Residual(n_from, n_to, n_time, scale_shift)]
            return block + [Attention(n_to, head_channels, new_order)] * (level in attention_levels)

        def resizer(n_channels, direction):
            if residual_resizing:
                return Residual(n_channels, n_channels, n_time, scale_shift, direction)
            return Resample(n_channels, direction)

        n = multipliers[0] * width
        self.input_blocks = nn.ModuleList([nn.ModuleList([First(n_in, n, 3, padding=1)])])
        skips, last = [n], len(multipliers) - 1
        for level, multiplier in enumerate(multipliers):
            for _ in range(n_res_blocks):
                self.input_blocks.append(nn.ModuleList(layer(n, multiplier * width, level)))
                n = multiplier * width
                skips.append(n)
            if level < last:
                self.input_blocks.append(nn.ModuleList([resizer(n, "down")]))
                skips.append(n)
        self.middle_block = nn.ModuleList(
            [
                Residual(n, n, n_time, scale_shift),
                Attention(n, head_channels, new_order),
                Residual(n, n, n_time, scale_shift),
            ]
        )
        self.output_blocks = nn.ModuleList()
        for level in range(last, -1, -1):
            for number in range(n_res_blocks + 1):
                block = layer(n + skips.pop(), multipliers[level] * width, level)
                n = multipliers[level] * width
                if level > 0 and number == n_res_blocks:
                    block.append(resizer(n, "up"))
                self.output_blocks.append(nn.ModuleList(block))
        self.out = nn.Sequential(nn.GroupNorm(32, n), nn.SiLU(), nn.Conv2d(n, n_out, 3, padding=1))

    def forward(self, x, timesteps):
        frequencies = torch.tensor([10000 ** (-k / (self.width // 2)) for k in range(self.width // 2)])
        angles = timesteps[:, None] * frequencies
        time = self.time_embed(torch.cat([angles.cos(), angles.sin()], dim=1))
        skips = []
        for block in self.input_blocks:
            for module in block:
                x = module(x, time)
            skips.append(x)
        for module in self.middle_block:
            x = module(x, time)
        for block in self.output_blocks:
            x = torch.cat([x, skips.pop()], dim=1)
            for module in block:
                x = module(x, time)
        return self.out(x)


def random_authors_unet(seed=0, **settings):
    """With every weight drawn, those that training starts at zero as well, so that all of them matter."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = AuthorsUNet(**settings)
        for name, parameter in network.named_parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
            else:
                nn.init.normal_(parameter, mean=float(name.endswith("weight")), std=0.2)
    return network.eval()
