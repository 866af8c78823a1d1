"""Images that the augmentations are tried on."""

import numpy as np
import pytest


@pytest.fixture(scope="module")
def picture():
    """Noise on a ramp, uint8, with grey, black and saturated pixels."""
    rng = np.random.default_rng(0)
    ramp = np.linspace(0, 200, 40)[:, None, None] * np.array([1.0, 0.6, 0.2])
    image = np.clip(ramp + rng.integers(0, 120, (40, 56, 3)), 0, 255).astype(np.uint8)
    image[0, :4] = [[0, 0, 0], [255, 255, 255], [255, 0, 0], [90, 90, 90]]
    return image


@pytest.fixture(scope="module")
def tiles():
    return np.random.default_rng(1).integers(0, 256, (8, 24, 20, 3), dtype=np.uint8)
