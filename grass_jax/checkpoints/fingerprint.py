"""Fingerprints of arrays: what tells that a checkpoint holds the bits that were saved."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

GOLDEN = 0x9E3779B1  # 2**32 over the golden ratio, odd: neighbouring positions get unlike numbers
WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}  # by bytes; eight are two words


def inspect(tree: Any) -> tuple[bool, dict[str, int]]:
    """Says whether every number of a tree is finite, and takes the fingerprint of each array.

    A fingerprint is the sum, modulo 2**32, of the array's words, each mixed with its position by a bijection: another
    value of one word always shows, any other change with a chance of 1 - 2**-32. How an array is laid over devices
    does not matter.

    Args:
        tree: arrays of any shape, of booleans, whole or real numbers of 1 to 8 bytes.

    Returns:
        Whether all are finite, and {"params/conv1/kernel": fingerprint, ...}.
    """
    looked = jax.device_get([_look(leaf) for leaf in jax.tree.leaves(tree)])
    found = {name: int(words) for name, (_, words) in zip(_names(tree), looked, strict=True)}
    return all(bool(finite) for finite, _ in looked), found


def differing(tree: Any, saved: Mapping[str, int]) -> list[str]:
    """Names of the arrays whose fingerprint is not the saved one; `saved` may know of more arrays, or of none."""
    if not saved:
        return []
    found = inspect(tree)[1]
    return [name for name in found if found[name] != saved.get(name)]


def _names(tree: Any) -> list[str]:
    paths, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths]


@jax.jit  # one array at a time: a state has hundreds but few shapes, and one program of all compiles for half a minute
def _look(array: jax.Array) -> tuple[jax.Array, jax.Array]:
    finite = jnp.isfinite(array).all()
    if array.dtype == jnp.bool_:
        array = array.astype(jnp.uint8)
    words = jax.lax.bitcast_convert_type(array, WORDS[array.dtype.itemsize]).astype(jnp.uint32)
    position = jnp.zeros((), jnp.uint32)
    for axis in range(words.ndim):
        stride = np.uint32(math.prod(words.shape[axis + 1 :]) % 2**32)
        position += jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis) * stride
    return finite, _mix(words ^ _mix(position * np.uint32(GOLDEN) + np.uint32(1))).sum(dtype=jnp.uint32)


def _mix(words: jax.Array) -> jax.Array:
    """The last step of MurmurHash3: a bijection of 32 bits in which each bit depends on all."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        words = (words ^ (words >> shift)) * np.uint32(factor)
    return words ^ (words >> 16)
