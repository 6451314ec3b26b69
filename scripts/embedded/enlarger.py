"""The upscaler that ships with the model: the runtime's ESRGAN network in PyTorch, and its export.

The runtime requires 64 features and 32 growth channels (src/esrgan.hpp), so only the number of
blocks determines the size. One block has 870,000 parameters, which are 1.7 MB as 16-bit floats.

`python -m scripts.embedded.enlarger RUN.pt TARGET.safetensors` exports the weights of a run.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812 - the usual name
from safetensors.torch import save_file
from torch import Tensor, nn

FACTOR = 4
"""How many times the network enlarges each side."""
BLOCKS = 1
FEATURES = 64
GROWTH = 32


def _convolve(inside: int, outside: int) -> nn.Conv2d:
    return nn.Conv2d(inside, outside, 3, padding=1)


class DenseBlock(nn.Module):
    """Five convolutions, each of which receives the outputs of all earlier ones."""

    def __init__(self) -> None:
        super().__init__()
        for k in range(4):
            self.add_module(f"conv{k + 1}", _convolve(FEATURES + k * GROWTH, GROWTH))
        self.conv5 = _convolve(FEATURES + 4 * GROWTH, FEATURES)

    def forward(self, x: Tensor) -> Tensor:
        """Return features like the given ones, [B, 64, H, W]."""
        seen = x
        for k in range(4):
            made = F.leaky_relu(self.get_submodule(f"conv{k + 1}")(seen), 0.2)
            seen = torch.cat((seen, made), 1)
        return x + 0.2 * self.conv5(seen)  # type: ignore[no-any-return]


class ResidualBlock(nn.Module):
    """Three dense blocks with a residual connection."""

    def __init__(self) -> None:
        super().__init__()
        self.rdb1, self.rdb2, self.rdb3 = DenseBlock(), DenseBlock(), DenseBlock()

    def forward(self, x: Tensor) -> Tensor:
        """Return features like the given ones, [B, 64, H, W]."""
        return x + 0.2 * self.rdb3(self.rdb2(self.rdb1(x)))  # type: ignore[no-any-return]


class Enlarger(nn.Module):
    """Maps pixels 0..1 [B, 3, H, W] to [B, 3, 4H, 4W], with parameters named as in Real-ESRGAN."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_first = _convolve(3, FEATURES)
        self.body = nn.ModuleList(ResidualBlock() for _ in range(BLOCKS))
        self.conv_body = _convolve(FEATURES, FEATURES)
        self.conv_up1 = _convolve(FEATURES, FEATURES)
        self.conv_up2 = _convolve(FEATURES, FEATURES)
        self.conv_hr = _convolve(FEATURES, FEATURES)
        self.conv_last = _convolve(FEATURES, 3)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the enlarged pixels, not clipped."""
        first = self.conv_first(pixels)
        x = first
        for block in self.body:
            x = block(x)
        x = first + self.conv_body(x)
        for convolve in (self.conv_up1, self.conv_up2):
            x = F.leaky_relu(convolve(F.interpolate(x, scale_factor=2)), 0.2)
        return self.conv_last(F.leaky_relu(self.conv_hr(x), 0.2))  # type: ignore[no-any-return]


def export(checkpoint: Path, target: Path) -> None:
    """Write a run's moving average as 16-bit floats to a file that the runtime can load."""
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)["average"]
    names = {name: name.removeprefix("enlarger.") for name in state}
    save_file({names[k]: v.half().contiguous() for k, v in state.items()}, target)


def main() -> None:
    """Export a run."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("checkpoint", type=Path, help="a run of `train enlarger`")
    parser.add_argument("target", type=Path, help="a file of safetensors")
    options = parser.parse_args()
    export(options.checkpoint, options.target)


if __name__ == "__main__":
    main()
