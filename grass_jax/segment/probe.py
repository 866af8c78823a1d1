"""The linear probe: a dense linear classifier on frozen features, fitted to its optimum.

The loss of a linear head whose logits are spread over the pixels of their feature cell depends on the masks only
through the number of pixels of each class in each cell. With those counts the fit is a multinomial logistic regression:
convex, without a learning rate, and the same whoever repeats it.
"""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from scipy.optimize import minimize

from grass_jax.config import ConfigError
from grass_jax.data.faults import DataError
from grass_jax.sharding import as_in_first, in_all

MOST_ITERATIONS = 1000
BATCH = 32  # tiles encoded at once


def cell_counts(masks: np.ndarray, height: int, width: int, classes: int) -> np.ndarray:
    """Counts the labelled pixels of every class in every cell of a feature map.

    Args:
        masks: (n, t, t) class ids; ids of `classes` and above do not count.
        height: rows h of the feature map.
        width: columns w.
        classes: k.

    Returns:
        (n, h, w, k) float32. Cell (i, j) holds the pixels whose centre lies in it when the map is stretched over the
        tile.
    """
    first_row, first_column = (
        np.ceil(np.arange(cells) * length / cells - 0.5).astype(int)
        for length, cells in zip(masks.shape[1:], (height, width), strict=True)
    )
    counts = np.empty((len(masks), height, width, classes), np.float32)
    for k in range(classes):  # class by class: the one-hot masks of many tiles would not fit in memory
        in_rows = np.add.reduceat(masks == k, first_row, axis=1, dtype=np.int32)
        counts[..., k] = np.add.reduceat(in_rows, first_column, axis=2)
    return counts


def fit_linear(features: np.ndarray, counts: np.ndarray, *, l2: float) -> tuple[np.ndarray, np.ndarray]:
    """Fits a multinomial logistic regression with weighted, mixed targets.

    Minimises 1/N sum_i sum_k c_ik (-log softmax_k(W^T z_i + b)) + l2/2 |W|^2 over W and b, where z is the features
    standardised over the labelled cells, c the counts and N their sum. The intercept is not regularised.

    Args:
        features: (m, d) float32, one row a cell.
        counts: (m, k) labelled pixels of every class in the cell.
        l2: strength of the penalty, for standardised features.

    Returns:
        Kernel (d, k) and bias (k,), float32, for features as they come.

    Raises:
        ConfigError: no cell is labelled.
    """
    labelled = counts.sum(1) > 0
    if not labelled.any():
        raise ConfigError("No pixel of the tiles for the linear probe is labelled: give it tiles with labels.")
    if not labelled.all():
        features, counts = features[labelled], counts[labelled]
    mean, std = features.mean(0, dtype=np.float64), features.std(0, dtype=np.float64)
    std = np.where(std > 1e-6, std, np.inf)  # a dead channel gets no weight
    z = (jnp.asarray(features) - mean.astype(np.float32)) / std.astype(np.float32)
    share = jnp.asarray(counts / counts.sum(dtype=np.float64), jnp.float32)
    d, k = z.shape[1], share.shape[1]

    @jax.jit
    def value_and_gradient(w: jax.Array) -> tuple[jax.Array, jax.Array]:
        def objective(w: jax.Array) -> jax.Array:
            logits = jnp.matmul(z, w[:-1], precision="highest") + w[-1]
            return -jnp.sum(share * jax.nn.log_softmax(logits)) + l2 / 2 * jnp.sum(w[:-1] ** 2)

        return jax.value_and_grad(objective)(w)

    def on_host(flat: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = value_and_gradient(flat.reshape(d + 1, k).astype(np.float32))
        return float(value), np.asarray(gradient, np.float64).ravel()

    found = minimize(
        on_host, np.zeros((d + 1) * k), jac=True, method="L-BFGS-B", options={"maxiter": MOST_ITERATIONS, "gtol": 1e-5}
    )
    if found.nit >= MOST_ITERATIONS:
        logging.warning(
            "The linear probe has not settled after %d iterations: raise config.l2 (config.probe.l2 in pretraining).",
            MOST_ITERATIONS,
        )
    w = found.x.reshape(d + 1, k)
    kernel = w[:-1] / std[:, None]
    return kernel.astype(np.float32), (w[-1] - mean @ kernel).astype(np.float32)


def fit_probe(
    encode: Callable[[np.ndarray], jax.Array],
    tiles: Iterable[dict[str, np.ndarray]],
    classes: int,
    *,
    l2: float,
    devices: int = 1,
) -> dict[str, Any]:
    """Fits a linear head on the features of labelled tiles; in a job every process calls it.

    Args:
        encode: see `encode_tiles`.
        tiles: see `encode_tiles`.
        classes: k.
        l2: see `fit_linear`.
        devices: see `encode_tiles`.

    Returns:
        The parameters of a `models.heads.LinearHead`, those of the first process in all of them.

    Raises:
        DataError: in every process; one of them has no tile.
    """

    def fit() -> dict[str, Any]:
        features, counts = encode_tiles(encode, tiles, classes, devices=devices)
        return fit_head(features, counts, l2=l2)

    # each has read its own copy of the tiles, and compiled for itself: alike, but not always to the bit
    return as_in_first(in_all(fit, DataError))


def encode_tiles(
    encode: Callable[[np.ndarray], jax.Array],
    tiles: Iterable[dict[str, np.ndarray]],
    classes: int,
    *,
    devices: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """Computes what a linear head is fitted on, of labelled tiles.

    Args:
        encode: images (n, t, t, c) as stored -> features (n, h, w, d) of the frozen encoder.
        tiles: `image` (t, t, c) and `mask` (t, t) of each labelled tile.
        classes: k.
        devices: a multiple of these is encoded at once.

    Returns:
        Features (n, h, w, d) float32 and `cell_counts` (n, h, w, k) of the n tiles, in their order.

    Raises:
        DataError: there is no tile.
    """
    features, counts = [], []
    size = -(-BATCH // devices) * devices

    def add(batch: list[dict[str, np.ndarray]]) -> None:
        images = np.stack([tile["image"] for tile in batch])
        images = np.pad(images, ((0, size - len(batch)), (0, 0), (0, 0), (0, 0)))  # one shape, one compilation
        found = np.asarray(encode(images), np.float32)[: len(batch)]
        _, height, width, _ = found.shape
        masks = np.stack([tile["mask"] for tile in batch])
        features.append(found)
        counts.append(cell_counts(masks, height, width, classes))

    batch: list[dict[str, np.ndarray]] = []
    for tile in tiles:
        batch.append(tile)
        if len(batch) == size:
            add(batch)
            batch = []
    if batch:
        add(batch)
    if not features:
        raise DataError("None of the tiles for the linear probe can be read: bring their disk back.")
    return np.concatenate(features), np.concatenate(counts)


def fit_head(features: np.ndarray, counts: np.ndarray, *, l2: float) -> dict[str, Any]:
    """Fits a linear head on what `encode_tiles` has computed.

    Args:
        features: (n, h, w, d).
        counts: (n, h, w, k).
        l2: see `fit_linear`.

    Returns:
        The parameters of a `models.heads.LinearHead`.
    """
    kernel, bias = fit_linear(features.reshape(-1, features.shape[-1]), counts.reshape(-1, counts.shape[-1]), l2=l2)
    return {"classifier": {"conv": {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)}}}
