"""Noise, light and shadow of the procedural landscape."""

import numpy as np
from PIL import Image


def noise(rng: np.random.Generator, size: int, scale: float, octaves: int = 3) -> np.ndarray:
    """Smooth random field with zero mean and unit deviation.

    Args:
        rng: random numbers.
        size: side of the field in pixels.
        scale: size of its largest blobs in pixels.
        octaves: layers, each half as large and half as strong as the one before.

    Returns:
        (size, size) float32.
    """
    total = np.zeros((size, size), np.float32)
    for octave in range(octaves):
        cells = max(3, round(size * 2**octave / scale) + 3)
        grid = Image.fromarray(rng.standard_normal((cells, cells)).astype(np.float32))
        total += np.asarray(grid.resize((size, size), Image.Resampling.BICUBIC)) * np.float32(0.5**octave)
    return (total - total.mean()) / total.std()


def blur(field: np.ndarray, times: int = 1) -> np.ndarray:
    """Soften with the kernel (1, 2, 1) / 4 along both axes, `times` times."""
    for _ in range(times):
        for axis in (0, 1):
            padded = np.concatenate([field.take([0], axis), field, field.take([-1], axis)], axis)  # repeated edge
            n = field.shape[axis]
            low, mid, high = (padded[(slice(None),) * axis + (slice(i, i + n),)] for i in range(3))
            field = (low + high) * np.float32(0.25) + mid * np.float32(0.5)
    return field


def shift(field: np.ndarray, dy: int, dx: int) -> np.ndarray:
    """Move a field by whole pixels, zeros coming in."""
    out = np.zeros_like(field)
    h, w = field.shape
    out[max(dy, 0) : h + min(dy, 0), max(dx, 0) : w + min(dx, 0)] = field[
        max(-dy, 0) : h + min(-dy, 0), max(-dx, 0) : w + min(-dx, 0)
    ]
    return out


def cast_shadow(height: np.ndarray, azimuth: float, slope: float) -> np.ndarray:
    """Share of sunlight that raised things keep from every pixel.

    Args:
        height: (h, w) heights in pixels.
        azimuth: direction in which shadows fall, in radians from x towards y.
        slope: tangent of the sun's elevation.

    Returns:
        (h, w) float32 between 0 (lit) and 1 (shadow), with soft edges.
    """
    shade = np.zeros_like(height)
    for step in range(1, int(height.max() / slope) + 1):
        moved = shift(height, round(step * np.sin(azimuth)), round(step * np.cos(azimuth)))
        np.maximum(shade, np.clip(moved - step * np.float32(slope) - height, 0, 1), out=shade)
    return shade


def place_crowns(
    rng: np.random.Generator, centres: np.ndarray, radii: np.ndarray, size: int, pointed: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tree crowns seen from above, the higher one on top.

    Args:
        rng: random numbers.
        centres: (n, 2) of y, x in pixels.
        radii: (n,) in pixels.
        size: side of the field in pixels.
        pointed: (n,) true for conifers.

    Returns:
        (size, size) heights in pixels, zero where no crown is; the slopes along y and x as (2, size, size);
        and the number of the crown, -1 where none is.
    """
    height = np.zeros((size, size), np.float32)
    owner = np.full((size, size), -1, np.int32)
    lumps = rng.standard_normal((64, 64)).astype(np.float32)
    for i, ((cy, cx), r) in enumerate(zip(centres, radii, strict=True)):
        y0, y1 = max(0, int(cy - r)), min(size, int(cy + r) + 2)
        x0, x1 = max(0, int(cx - r)), min(size, int(cx + r) + 2)
        if y0 >= y1 or x0 >= x1:
            continue
        dy, dx = np.mgrid[y0:y1, x0:x1].astype(np.float32)
        lump = lumps[np.arange(y0, y1)[:, None] % 64, np.arange(x0, x1) % 64]
        away = np.sqrt((dy - cy) ** 2 + (dx - cx) ** 2) / r + 0.12 * lump
        dome = (2.2 if pointed[i] else 1.2) * r * (1 - away ** (1 if pointed[i] else 2)) + r
        window = height[y0:y1, x0:x1]
        top = (away < 1) & (dome > window)
        window[top] = dome[top]
        owner[y0:y1, x0:x1][top] = i
    return height, np.stack(list(np.gradient(blur(height)))), owner
