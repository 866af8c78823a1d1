"""Guidance: which box of each view carries the discrimination, and the controls that ask whether that is why."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from grass_jax.augment import Geometry
from grass_jax.config import YES_OR_NO, number, one_of, whole
from grass_jax.methods import Method
from grass_jax.sampling import loss_attention_map, random_places, salient_boxes
from grass_jax.state import TrainState

LAST_STAGE = 4


@dataclass(frozen=True)
class GuidanceSettings:
    """Choices of the guided sampling; all but the first two are controls and ablations.

    Attributes:
        threshold: height above which a map pixel belongs to a region, as a share of the map's range.
        sign: what a map without a positive value gives: `fallback`, the whole view; `flip`, the original's division by
            the maximum, which turns the map upside down and selects its most negative region.
        boxes: `guided`, or `random`: boxes of the guided ones' sizes, anywhere in the view.
        source: what the map is made of: `gradient`, features weighted by the loss's gradient at them; `activation`, the
            features' mean alone; `pixels`, the mean absolute gradient at the input pixels.
        encoder: whose map: the `trained` one's, or that of a `random` one with the same layers.
        stage: of the encoder at whose features the map is taken, 1 to 4, the last; that of `pixels` has none.
        negate: whether to follow what lowers the loss instead of what raises it; `gradient` alone has a sign to turn.
        views: `both`, or `first`: the second view of each tile stays whole.
        size: side to which the views are shrunk for the guidance, view pixels; 0 leaves them.
    """

    threshold: float = 0.5
    sign: Literal["fallback", "flip"] = "fallback"
    boxes: Literal["guided", "random"] = "guided"
    source: Literal["gradient", "activation", "pixels"] = "gradient"
    encoder: Literal["trained", "random"] = "trained"
    stage: int = LAST_STAGE
    negate: bool = False
    views: Literal["both", "first"] = "both"
    size: int = 0

    def __post_init__(self):
        if not 0 < self.threshold < 1:
            raise ValueError(f"guidance threshold must lie between 0 and 1, not {self.threshold}.")
        if self.stage not in range(1, LAST_STAGE + 1):
            raise ValueError(f"guidance stage must be 1, 2, 3 or 4, not {self.stage}.")
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                allowed = " or ".join(map(repr, choices))
                raise ValueError(f"guidance {name} must be {allowed}, not {getattr(self, name)!r}.")
        if self.size < 0:
            raise ValueError(f"guidance size must be at least 0, not {self.size}.")
        # both would train without a word: on whole views, and as with the last stage
        if self.negate and self.source != "gradient":
            raise ValueError(
                f"guidance negate needs the source 'gradient': a map of {self.source!r} has no sign to turn."
            )
        if self.stage != LAST_STAGE and self.source == "pixels":
            raise ValueError(f"guidance stage must be {LAST_STAGE} with the source 'pixels', not {self.stage}.")


CHOICES = {name: get_args(kind) for name, kind in GuidanceSettings.__annotations__.items() if get_args(kind)}
# what a configuration may say of each; code may also say it with NumPy's numbers
RULES = {
    "threshold": number("between 0 and 1", lambda v: 0 < v < 1),
    **{name: one_of(*choices) for name, choices in CHOICES.items()},
    "stage": one_of(*range(1, LAST_STAGE + 1)),
    "negate": YES_OR_NO,
    "size": whole(0, " (0: that of the views)"),
}


class Guidance(NamedTuple):
    """What one guidance pass found.

    Attributes:
        boxes: salient boxes (y0, x0, y1, x1), half-open, in view pixels, (b, 2, 4) int32.
        maps: loss attention maps, (b, 2, h, w).
        fallback: views that stay whole because their map has no positive value, (b, 2) bool.
        loss: the contrastive loss of the views as they came, scalar.
    """

    boxes: jax.Array
    maps: jax.Array
    fallback: jax.Array
    loss: jax.Array


def guide(
    state: TrainState,
    views: jax.Array,
    *,
    method: Method,
    hp: GuidanceSettings,
    geometry: Geometry | None = None,
    key: jax.Array | None = None,
    local: Callable = lambda f: f,
) -> tuple[Guidance, Any]:
    """Asks the gradient of the loss at the features which box of each view carries the discrimination.

    One encoder forward in train mode; the gradient goes through head and loss only, for an earlier stage through the
    stages after it, too, and only for `pixels` through everything (the original runs the whole network backward for the
    same map). No gradient flows through the boxes.

    Args:
        state: supplies parameters and statistics.
        views: (b, 2, s, s, c), normalised.
        method: supplies encoder and loss.
        hp: the choices.
        geometry: of the views, for a method that needs it.
        key: places random boxes.
        local: wraps the map -> box function so that each device runs it on its own rows.

    Returns:
        The guidance, and the batch-norm statistics after the pass (the original updates them here, too); of a random
        encoder's pass, or one on shrunk views, those before it.

    Raises:
        ValueError: random boxes are asked for without a key.
    """
    size, own_stats = views.shape[-2], state.stats
    if hp.size:
        views = views.astype(jnp.promote_types(views.dtype, jnp.float32))
        shape = (*views.shape[:2], hp.size, hp.size, views.shape[-1])
        # HIGH: as in the augmentation, whose views these are
        views = jax.image.resize(views, shape, "linear", precision=jax.lax.Precision.HIGH)
    if hp.encoder == "random":
        state = _random_state(state, views, method)
    maps, loss, stats = _maps(state, views, method.targets(state, views, geometry), method, hp)
    if hp.negate:
        maps = -maps
    if hp.sign == "flip":
        maps = maps / maps.max((-2, -1), keepdims=True)
    boxes = local(partial(salient_boxes, size=size, threshold=hp.threshold))(maps)
    fallback = jnp.zeros(maps.shape[:-2], bool) if hp.sign == "flip" else maps.max((-2, -1)) <= 0
    whole = fallback if hp.views == "both" else fallback | (jnp.arange(2) == 1)
    boxes = jnp.where(whole[..., None], jnp.array([0, 0, size, size], jnp.int32), boxes)
    if hp.boxes == "random":
        if key is None:
            raise ValueError("Random boxes need a key: give guide() one.")
        boxes = random_places(key, boxes, size)
    elsewhere = hp.encoder == "random" or hp.size  # statistics of other parameters, or of other views than train
    return Guidance(boxes, maps, fallback, loss), own_stats if elsewhere else stats


def _maps(
    state: TrainState, views: jax.Array, targets: Any, method: Method, hp: GuidanceSettings
) -> tuple[jax.Array, jax.Array, Any]:
    """Maps (b, 2, h, w) before their sign is looked at, the loss, and the statistics after the pass."""
    end = hp.stage if hp.source != "pixels" else LAST_STAGE

    def loss_from(features: jax.Array, stats: Any) -> tuple[jax.Array, Any]:
        if end < LAST_STAGE:
            features, stats = method.encode(state.params, stats, features, begin=end)
        loss, (stats, _) = method.loss(state.params, stats, features, targets)
        return loss, stats

    def loss_of_pixels(views: jax.Array) -> tuple[jax.Array, tuple[Any, jax.Array]]:
        features, stats = method.encode(state.params, state.stats, views)
        loss, stats = loss_from(features, stats)
        return loss, (stats, features)

    if hp.source == "pixels":
        (loss, (stats, features)), gradients = jax.value_and_grad(loss_of_pixels, has_aux=True)(views)
        shape = features.shape[:-1]  # the map is as coarse as the others
        return jax.image.resize(jnp.abs(gradients).mean(-1), shape, "linear"), loss, stats
    features, stats = method.encode(state.params, state.stats, views, end=end)
    # in float32 also where the encoder computes in bfloat16: boxes jump with the last digit of a map
    features = jax.lax.stop_gradient(features.astype(jnp.promote_types(features.dtype, jnp.float32)))
    if hp.source == "activation":
        loss, stats = loss_from(features, stats)
        return features.mean(-1), loss, stats
    (loss, stats), gradients = jax.value_and_grad(loss_from, has_aux=True)(features, stats)
    return loss_attention_map(features, gradients), loss, stats


def _random_state(state: TrainState, views: jax.Array, method: Method) -> TrainState:
    """The state of a network that has learned nothing, the same in every step, made anew so that none is stored."""
    # behind a barrier: the compiler would work out all these constants itself
    words = jax.lax.optimization_barrier(jax.random.key_data(jax.random.key(0)))
    params, stats, extra = method.init(jax.random.wrap_key_data(words), views[:2])
    return state.replace(params=params, stats=stats, extra=extra)
