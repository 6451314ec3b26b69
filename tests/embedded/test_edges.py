"""The widths of edges, by which the upscaler is compared with other ways to enlarge."""

import numpy as np
import pytest
from PIL import Image

from scripts.embedded.edges import edge_widths
from scripts.embedded.score import cases, true_drawing


@pytest.mark.parametrize("width", [2, 4, 8, 16])
def test_the_width_of_a_ramp(width: int) -> None:
    """A linear ramp is as wide as it was made, in rows and in columns; a flat image has no edge."""
    ramp = 200 * np.clip((np.arange(96) - 48) / width + 0.5, 0, 1)
    pixels = np.repeat(np.repeat(ramp[None, :, None], 40, 0), 3, 2).astype(np.uint8)
    for image in (pixels, pixels.transpose(1, 0, 2)):
        assert np.median(edge_widths(image)) == pytest.approx(width, rel=0.05)
    assert edge_widths(np.full((40, 40, 3), 9, np.uint8)).size == 0


def test_an_enlarged_drawing_has_wider_edges_than_a_drawing_of_that_size() -> None:
    """Edges of a drawing stay narrow at any size; Lanczos widens them with the factor."""
    for case in cases(6):
        small = Image.fromarray(true_drawing(case.plan, 0, 128, 128))
        smooth = small.resize((512, 512), Image.Resampling.LANCZOS)
        sharp = np.median(edge_widths(true_drawing(case.plan, 0, 512, 512)))
        assert sharp < 2.5
        assert np.median(edge_widths(np.asarray(smooth))) > 2 * sharp
