"""Many linear probes of one frozen encoder: its features are computed once, and all heads classify in one pass.

A comparison fits a head for every budget of labels and every draw of that budget. Encoding the tiles and the test
scenes for each of them is most of the work, and the same work each time.
"""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax.numpy as jnp
import numpy as np

from grass_jax.bands import Bands
from grass_jax.data.faults import readable
from grass_jax.data.labelled import LabelledSet
from grass_jax.models import LinearHead, ResNet, Segmenter
from grass_jax.segment.evaluate import Evaluation, evaluate_heads
from grass_jax.segment.model import make_forward
from grass_jax.segment.probe import encode_tiles, fit_head
from grass_jax.sharding import local_mesh

Key = TypeVar("Key", bound=Hashable)


def probe_lists(
    module: ResNet,
    variables: Mapping[str, Any],
    bands: Bands,
    labelled: LabelledSet,
    chosen: Mapping[Key, np.ndarray],
    *,
    l2: float,
    window: int,
    overlap: float,
    batch_size: int,
    pictures: int = 0,
    title: str = "",
) -> dict[Key, Evaluation]:
    """Fits a linear head for every list of labelled tiles, and scores all of them on the test scenes.

    Every tile is encoded once, however many lists it is in, and every scene is read and encoded once. Lists of the same
    tiles, such as the draws of the budget `all`, share a head, which is fitted on the first of them.

    Args:
        module: the encoder.
        variables: its `params` and `batch_stats`, of this process alone (see `own_copy`).
        bands: of the images, with their normalisation.
        labelled: the tiles, and the scenes to score on.
        chosen: by any key, such as budget and number of the draw, the indices of tiles of `labelled.train`; see
            `labelled_data.choose`.
        l2: see `fit_linear`.
        window: side of a window, pixels.
        overlap: share of a window that it has in common with the next one.
        batch_size: windows at once, at most; see `evaluate_heads`.
        pictures: number of scenes of which a crop is kept.
        title: of the progress line; empty shows none.

    Returns:
        By key what `evaluate` finds for a head that `fit_probe` fits on these tiles; those that cannot be read are left
        out, as the log says.

    Raises:
        ConfigError: a list has no labelled pixel, or the test scenes have none.
    """
    if not chosen:
        return {}
    mesh, k = local_mesh(), len(labelled.classes)
    number = {key: frozenset(map(int, indices)) for key, indices in chosen.items()}
    lists: dict[frozenset[int], Sequence[int]] = {}
    for key, tiles in number.items():
        lists.setdefault(tiles, [int(i) for i in chosen[key]])

    encode = make_forward(module, bands, mesh)(variables)
    place: dict[int, int] = {}  # of each tile among the features; one that cannot be read has none

    def pairs() -> Iterator[dict[str, np.ndarray]]:
        for tile, pair in readable(labelled.train, sorted(frozenset().union(*lists))):
            place[tile] = len(place)
            yield pair

    features, counts = encode_tiles(encode, pairs(), k, devices=mesh.size)
    heads = []
    for indices in lists.values():
        rows = np.array([place[i] for i in indices if i in place], int)
        heads.append(fit_head(features[rows], counts[rows], l2=l2))
    del features, counts  # as large as all that follows

    found = evaluate_heads(
        make_forward(Segmenter(module, LinearHead(len(heads) * k)), bands, mesh)(
            {
                "params": {"encoder": variables["params"], "decoder": stack_heads(heads)},
                "batch_stats": {"encoder": variables["batch_stats"]},
            }
        ),
        labelled.test,
        labelled.classes,
        heads=len(heads),
        window=window,
        overlap=overlap,
        batch_size=batch_size,
        bands=bands,
        pictures=pictures,
        title=title,
    )
    of_list = dict(zip(lists, found, strict=True))
    return {key: of_list[tiles] for key, tiles in number.items()}


def stack_heads(heads: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Puts linear heads side by side into one.

    Args:
        heads: parameters of n `LinearHead`s of k classes.

    Returns:
        Those of one `LinearHead` of n k classes, whose channels i k to (i + 1) k - 1 are the classes of head i.
    """
    kernels, biases = zip(
        *((h["classifier"]["conv"]["kernel"], h["classifier"]["conv"]["bias"]) for h in heads), strict=True
    )
    return {"classifier": {"conv": {"kernel": jnp.concatenate(kernels, 1), "bias": jnp.concatenate(biases)}}}
