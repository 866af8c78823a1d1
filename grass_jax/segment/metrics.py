"""The field's figures, all from one confusion matrix: counted on the devices, turned into scores on the host."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from grass_jax.data.labels import IGNORE
from grass_jax.sharding import each_device_alone, replicated, split_by_tile

SLAB = 2**16  # pixels of one product: float32 counts whole numbers exactly up to 2**24
AVERAGED = ("miou", "mean_f1", "overall_accuracy", "kappa")


def confusion_matrix(truth: jax.Array, prediction: jax.Array, classes: int) -> jax.Array:
    """Counts how often each true class was predicted as each class, exactly.

    Args:
        truth: class ids of any shape, below 2**31 pixels; what is not in 0..classes-1 (IGNORE above all) is left out.
        prediction: class ids of the same shape; what is not in 0..classes-1 is left out, too.
        classes: their number k.

    Returns:
        (k, k) int32; rows are the truth, columns the prediction.
    """
    truth, prediction = truth.reshape(-1).astype(jnp.int32), prediction.reshape(-1).astype(jnp.int32)
    # A scatter adds one pixel after another on TPU and collides on GPU; on CPU it is the quicker one by far.
    return jax.lax.platform_dependent(
        truth, prediction, cpu=partial(_by_scatter, classes=classes), default=partial(_by_product, classes=classes)
    )


def _by_scatter(truth: jax.Array, prediction: jax.Array, *, classes: int) -> jax.Array:
    counted = (truth >= 0) & (truth < classes) & (prediction >= 0) & (prediction < classes)
    cells = jnp.where(counted, truth * classes + prediction, classes**2)
    counts = jnp.zeros(classes**2 + 1, jnp.int32).at[cells].add(1)
    return counts[:-1].reshape(classes, classes)


def _by_product(truth: jax.Array, prediction: jax.Array, *, classes: int) -> jax.Array:
    """The same as products of one-hot rows, slab by slab, so that neither memory nor the exactness depends on n."""
    slab = max(1, min(SLAB, truth.size))
    fill = (0, -truth.size % slab)
    slabs = [jnp.pad(ids, fill, constant_values=-1).reshape(-1, slab) for ids in (truth, prediction)]

    def add(counts: jax.Array, pair: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        rows, columns = (jax.nn.one_hot(ids, classes, dtype=jnp.bfloat16) for ids in pair)  # zeros outside of 0..k-1
        product = jnp.einsum("nt,np->tp", rows, columns, preferred_element_type=jnp.float32)
        return counts + product.astype(jnp.int32), None

    return jax.lax.scan(add, jnp.zeros((classes, classes), jnp.int32), (slabs[0], slabs[1]))[0]


def make_confusion(classes: int, mesh: Mesh, *, chunk: int = 2**20) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Makes a function that counts the confusion matrix of pixels on all devices of a mesh.

    Args:
        classes: their number k.
        mesh: the pixels are divided over its axis "data"; only the k x k counts cross devices.
        chunk: pixels of one call of the devices; the last chunk is filled up with ignored pixels.

    Returns:
        `add(truth, prediction)`: ids of any (equal) shape -> (k, k) int64 of these pixels alone, rows the truth: add
        the matrices up for several scenes. Every process of a job passes the same pixels. It raises ValueError for an
        id that is neither a class nor, in the truth, IGNORE.
    """
    chunk = -(-chunk // mesh.size) * mesh.size
    sharding = split_by_tile(mesh)
    alone = each_device_alone(mesh)(lambda truth, prediction: confusion_matrix(truth, prediction, classes)[None])

    @partial(jax.jit, out_shardings=replicated(mesh))
    def of_chunk(truth: jax.Array, prediction: jax.Array) -> jax.Array:
        return alone(truth, prediction).sum(0, dtype=jnp.int32)

    def on_devices(pixels: np.ndarray) -> jax.Array:
        pixels = np.pad(pixels.astype(np.uint8), (0, chunk - len(pixels)), constant_values=IGNORE)
        return jax.make_array_from_callback(pixels.shape, sharding, lambda index: pixels[index])

    def add(truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
        check_ids(truth, prediction, classes)
        truth, prediction = np.ravel(truth), np.ravel(prediction)
        counts = np.zeros((classes, classes), np.int64)
        for begin in range(0, len(truth), chunk):
            part = slice(begin, begin + chunk)
            counts += np.asarray(of_chunk(on_devices(truth[part]), on_devices(prediction[part])))
        return counts

    return add


def check_ids(truth: np.ndarray, prediction: np.ndarray, classes: int) -> None:
    """Raises ValueError where shapes differ or an id is no class; what is predicted on ignored pixels is free."""
    truth, prediction = np.asarray(truth), np.asarray(prediction)
    if truth.shape != prediction.shape:
        raise ValueError(f"Truth {truth.shape} and prediction {prediction.shape} must have the same shape.")
    counts = truth != IGNORE
    for name, ids in (("truth", truth), ("prediction", prediction)):
        wrong = counts & ((ids >= classes) | (ids < 0))
        if wrong.any():
            raise ValueError(
                f"The {name} holds the id {int(ids[wrong][0])} where the truth counts: ids must be in 0..{classes - 1}."
            )


def scores(matrix: np.ndarray, classes: Sequence[str], without: Sequence[str] = ()) -> dict[str, Any]:
    """Turns a confusion matrix into the field's figures; what is not defined is None.

    A class neither in the truth nor in the prediction has no IoU and no F1: it is left out of the means and named under
    "absent". A class that is predicted but is not in the truth counts, with 0.

    Args:
        matrix: (k, k) counts, rows the truth.
        classes: their k names.
        without: names of classes of which "miou_without" leaves out one at a time (Potsdam's clutter). Only its own IoU
            leaves the mean: its pixels still count as errors of the other classes.

    Returns:
        "miou", "mean_f1", "overall_accuracy", "kappa" (Cohen's), "miou_without": {name: value}, "iou" and "f1":
        {class: value}, "pixels": {class: its pixels in the truth}, "absent": names.

    Raises:
        ValueError: the matrix does not have a row and a column per class, or `without` names no class.
    """
    matrix = np.asarray(matrix)
    if matrix.shape != (len(classes), len(classes)):
        raise ValueError(f"{len(classes)} classes need a matrix with as many rows and columns, not {matrix.shape}.")
    for name in without:
        if name not in classes:
            raise ValueError(f"The mIoU without {name!r} needs one of the classes {', '.join(classes)}.")
    counts = matrix.astype(np.float64)  # products of int64 counts would overflow
    right, truth, predicted, pixels = np.diag(counts), counts.sum(1), counts.sum(0), counts.sum()
    iou = dict(zip(classes, map(_ratio, right, truth + predicted - right), strict=True))
    f1 = dict(zip(classes, map(_ratio, 2 * right, truth + predicted), strict=True))
    accuracy = _ratio(right.sum(), pixels)
    chance = _ratio(truth @ predicted, pixels**2)
    return {
        "miou": _mean(iou.values()),
        "mean_f1": _mean(f1.values()),
        "overall_accuracy": accuracy,
        "kappa": None if accuracy is None or chance is None else _ratio(accuracy - chance, 1 - chance),
        "miou_without": {name: _mean(value for key, value in iou.items() if key != name) for name in without},
        "iou": iou,
        "f1": f1,
        "pixels": dict(zip(classes, map(int, matrix.sum(1, dtype=np.int64)), strict=True)),
        "absent": [name for name, value in iou.items() if value is None],
    }


def area_scores(
    matrices: Mapping[str, np.ndarray], classes: Sequence[str], without: Sequence[str] = ()
) -> dict[str, Any]:
    """Averages the figures over areas, so that a large or easy area does not decide alone.

    Args:
        matrices: area -> (k, k) counts of its scenes.
        classes: their k names.
        without: as for `scores`.

    Returns:
        "miou", "mean_f1", "overall_accuracy", "kappa" and "miou_without", each the plain mean over the areas in which
        it is defined (an area without a labelled pixel has no figures, one of a single class has no kappa); "areas":
        how many have labelled pixels; "area_miou": {area: mIoU or None}.
    """
    each = {area: scores(matrix, classes, without) for area, matrix in matrices.items()}
    means = {name: _mean(values[name] for values in each.values()) for name in AVERAGED}
    return means | {
        "miou_without": {name: _mean(values["miou_without"][name] for values in each.values()) for name in without},
        "areas": sum(values["miou"] is not None for values in each.values()),
        "area_miou": {area: values["miou"] for area, values in each.items()},
    }


def _ratio(part: float, whole: float) -> float | None:
    return float(part / whole) if whole > 0 else None


def _mean(values: Any) -> float | None:
    present = [value for value in values if value is not None]
    return float(np.mean(present)) if present else None
