"""The first convolution of an encoder for another number of bands than it was trained with."""

import numpy as np

from grass_jax.bands import Bands


def adapt_stem(weight: np.ndarray, bands: Bands) -> np.ndarray:
    """Makes the kernel of a first convolution for other bands.

    Red, green and blue keep their weights where `bands` says which they are and the file has three channels; every
    other band takes the mean over the file's channels. All are scaled so that the response to a grey surface stays
    about as strong.

    Args:
        weight: (out, i, h, w).
        bands: the c bands that are read.

    Returns:
        (out, c, h, w) of the same dtype; `weight` itself where c is i.
    """
    channels = weight.shape[1]
    if channels == len(bands):
        return weight
    wide = weight.astype(np.float64)
    adapted = np.repeat(wide.mean(1, keepdims=True), len(bands), axis=1)
    if channels == 3 and bands.colours:
        adapted[:, np.array(bands.colours)] = wide
    return (adapted * (channels / len(bands))).astype(weight.dtype)


def adaption(channels: int, bands: Bands) -> str:
    """Says in words what `adapt_stem` does; empty where it does nothing."""
    if channels == len(bands):
        return ""
    words = f"its first convolution reads {channels} channels and {len(bands)} bands are given: "
    if channels == 3 and bands.colours:
        colours = ", ".join(str(number) for number in bands.rgb)
        words += f"bands {colours} keep the weights of red, green and blue, every other band takes their mean"
    else:
        words += "every band takes the mean of their weights"
    return words + f", all times {channels}/{len(bands)}"
