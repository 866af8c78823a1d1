"""A method of self-supervised learning is a few functions over one skeleton: views -> encoder -> head -> loss."""

from collections.abc import Callable
from typing import Any, NamedTuple


class Method(NamedTuple):
    """What the steps need to know of a method.

    Attributes:
        init: (key, views) -> params, stats, extra; views, (b, 2, s, s, c), only lend their shape.
        encode: (params, stats, views, *, begin=0, end=4) -> features (b, 2, h, w, d), stats; one encoder forward in
            train mode. With `end` below 4 the features of that stage; with `begin` above 0 they take the views' place.
        loss: (params, stats, features, targets) -> loss, (stats, metrics); the head and what follows it.
        targets: (state, views, geometry) -> the side of the loss that no gradient enters; () where there is none. The
            geometry, an `augment.Geometry`, is None where the augmentation gives none.
        after: (extra, params, targets) -> extra, after the update: moving averages, queues.
    """

    init: Callable[..., tuple[Any, Any, Any]]
    encode: Callable[..., tuple[Any, Any]]
    loss: Callable[..., tuple[Any, tuple[Any, dict[str, Any]]]]
    targets: Callable[..., Any] = lambda state, views, geometry: ()
    after: Callable[..., Any] = lambda extra, params, targets: extra
