"""A procedural aerial landscape with exact label masks, drawn by NumPy and Pillow from a seed."""

from grass_jax.data.landscape.scene import CLASS_NAMES, landscape

__all__ = ["CLASS_NAMES", "landscape"]
