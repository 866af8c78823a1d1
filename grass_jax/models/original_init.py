"""The initial parameters of the original implementation, for the `reference` preset."""

from typing import Any

import jax
import jax.numpy as jnp


def original_init(key: jax.Array, params: Any) -> Any:
    """Draws kernels and dense biases from U(-1/sqrt(fan_in), 1/sqrt(fan_in)), PyTorch's default, and leaves batch norm.

    The original GraSS code builds both layers of the head under one seed, so that the second layer's kernel repeats the
    first one's first outputs, and its bias the weights of the output that follows. That is reproduced where the shapes
    allow it.

    Args:
        key: of the draw.
        params: a tree with `encoder` and `head` in Flax's names; only shapes and dtypes count for what is drawn.

    Returns:
        The new tree.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(params)
    keys = jax.random.split(key, len(leaves))
    drawn = []
    for (path, leaf), leaf_key in zip(leaves, keys, strict=True):
        layer, name = path[-2].key, path[-1].key
        if name == "kernel":
            fan_in = leaf.size // leaf.shape[-1]
        elif name == "bias" and layer.startswith("dense"):
            fan_in = params["head"][layer]["kernel"].shape[0]
        else:
            drawn.append(leaf)
            continue
        drawn.append(
            jax.random.uniform(leaf_key, leaf.shape, leaf.dtype, -1.0, 1.0) / jnp.sqrt(fan_in).astype(leaf.dtype)
        )
    params = jax.tree_util.tree_unflatten(structure, drawn)

    first, second = params["head"]["dense1"], params["head"]["dense2"]
    inputs, outputs = second["kernel"].shape
    if first["kernel"].shape[0] == inputs and first["kernel"].shape[1] > outputs:
        second = {"kernel": first["kernel"][:, :outputs], "bias": first["kernel"][:outputs, outputs]}
        params = {**params, "head": {**params["head"], "dense2": second}}
    return params
