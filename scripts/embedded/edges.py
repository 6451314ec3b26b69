"""Measure how sharp enlarged images are: `python -m scripts.embedded.edges --size 512x512`.

For each prompt, compares three images of the requested size: the service's image, which the
built-in upscaler enlarged; the generated image, enlarged with Lanczos; and the drawing program's
own image. The width of an edge is its contrast divided by its steepest slope, in pixels of the
requested size.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from scripts.embedded.score import Case, Pixels, cases, true_drawing

_LANCZOS: Final = Image.Resampling.LANCZOS

LEAST_CONTRAST: Final = 48
"""Smaller changes of a colour channel, of 255, are not counted as edges."""

REACH: Final = 24
"""Pixels on each side of an edge in which its contrast is measured."""


def edge_widths(pixels: Pixels) -> NDArray[np.float64]:
    """Return the widths in pixels of the edges in an image's rows and columns, of each channel."""
    channels = np.moveaxis(pixels.astype(float), -1, 0)
    return np.concatenate([_widths_in_rows(rows) for c in channels for rows in (c, c.T)])


def _widths_in_rows(values: NDArray[np.float64]) -> NDArray[np.float64]:
    slope = np.abs(np.diff(values, axis=1))
    padded = np.pad(slope, ((0, 0), (REACH, REACH)))
    highest = np.lib.stride_tricks.sliding_window_view(padded, 2 * REACH + 1, axis=1).max(-1)
    around = np.pad(values, ((0, 0), (REACH, REACH)), mode="edge")
    window = np.lib.stride_tricks.sliding_window_view(around, 2 * REACH + 2, axis=1)
    contrast = window.max(-1) - window.min(-1)
    steepest = (slope == highest) & (contrast >= LEAST_CONTRAST)
    # An edge that is nearly parallel to the row has no slope along it.
    steepest &= slope * REACH > contrast
    return contrast[steepest] / slope[steepest]


def compared(size: str, prompts: list[Case]) -> Iterator[dict[str, float]]:
    """Yield the median edge width of each of the three images, for each prompt."""
    from sdstream import Runner  # noqa: PLC0415 - only needed to generate images

    with Runner() as runner:
        for seed, case in enumerate(prompts):
            answer = runner.generate(case.prompt, seed=seed, size=size)
            with Image.open(answer.data[0].url) as served:
                enlarged = served.convert("RGB")
            # Without generated_size, the model generates this size itself.
            small_size = answer.parameters.get("generated_size", size)
            small = runner.generate(case.prompt, seed=seed, size=small_size)
            with Image.open(small.data[0].url) as generated:
                # As the service does: if the aspect ratios differ, crop the edges.
                smooth = ImageOps.fit(generated.convert("RGB"), enlarged.size, _LANCZOS)
            images = {
                "upscaler": np.asarray(enlarged),
                "lanczos": np.asarray(smooth),
                "drawing": true_drawing(case.plan, seed, *enlarged.size),
            }
            yield {name: _median(edge_widths(image)) for name, image in images.items()}


def _median(widths: NDArray[np.float64]) -> float:
    return float(np.median(widths)) if widths.size else math.nan


def main() -> None:
    """Print the median edge widths of a size."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", default="512x512", help="WIDTHxHEIGHT in pixels")
    parser.add_argument("--count", type=int, default=30, help="prompts")
    options = parser.parse_args()
    rows = list(compared(options.size, cases(options.count)))
    for name in rows[0]:
        # An image without an edge has no width.
        print(f"{name:<10}{np.nanmedian([row[name] for row in rows]):6.2f} px")


if __name__ == "__main__":
    main()
