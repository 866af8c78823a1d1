"""Optimisers and learning-rate schedules that optax does not have: LARC, and the original's waves."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax


def decay_mask(params: Any, *, decay_bias: bool = True) -> Any:
    """Says which parameters weight decay applies to: kernels, and biases of dense layers if wanted; no batch norm.

    Args:
        params: a tree of parameters with Flax's names.
        decay_bias: include the biases of dense layers (the original does).

    Returns:
        A tree of booleans of the same structure.
    """

    def decays(path: tuple, _: Any) -> bool:
        layer, leaf = path[-2].key, path[-1].key
        return leaf == "kernel" or (decay_bias and leaf == "bias" and layer.startswith("dense"))

    return jax.tree_util.tree_map_with_path(decays, params)


def larc(
    learning_rate: optax.ScalarOrSchedule,
    *,
    momentum: float = 0.9,
    weight_decay: float = 1e-6,
    decay_mask: Any | Callable[[Any], Any] | None = None,
    trust_coefficient: float = 1e-3,
    eps: float = 1e-8,
) -> optax.GradientTransformation:
    """SGD with momentum under layer-wise adaptive rate control (LARS, arXiv 1708.03888, as NVIDIA Apex's LARC without
    clipping).

    Per tensor p with gradient g, in Frobenius norms: g <- (g + wd p) trust |p| / (|g| + wd |p| + eps) when both norms
    are above zero, else g stays as it is, without decay (so a batch-norm bias, which starts at zero, takes a plain SGD
    step first). Then buf <- momentum buf + g and p <- p - learning_rate buf.

    Args:
        learning_rate: a number or an optax schedule.
        momentum: of the heavy ball, no dampening.
        weight_decay: wd.
        decay_mask: a tree of booleans, or a function of the parameters that returns one; None decays everything.
            A tensor that does not decay is still rate-controlled, with wd = 0.
        trust_coefficient: trust.
        eps: added to the denominator.

    Returns:
        The transformation; its update needs the parameters.
    """

    def control(updates: Any, params: Any) -> Any:
        if params is None:
            raise ValueError("larc scales by the parameters' norms: pass params to update().")
        mask = decay_mask(params) if callable(decay_mask) else decay_mask
        if mask is None:
            mask = jax.tree.map(lambda _: True, params)

        def scaled(g: jax.Array, p: jax.Array, decays: bool) -> jax.Array:
            decay = weight_decay if decays else 0.0
            p_norm, g_norm = jnp.linalg.norm(p.ravel()), jnp.linalg.norm(g.ravel())
            rate = trust_coefficient * p_norm / (g_norm + decay * p_norm + eps)
            return jnp.where((p_norm > 0) & (g_norm > 0), (g + decay * p) * rate, g)

        return jax.tree.map(scaled, updates, params, mask)

    return optax.chain(
        optax.stateless(control),
        optax.trace(decay=momentum),
        optax.scale_by_learning_rate(learning_rate),
    )


def scale_encoder(rate: float) -> optax.GradientTransformation:
    """Multiplies the updates of the parameters under `encoder`: its learning rate as a multiple of the decoder's."""

    def scale(updates: Any, params: Any) -> Any:
        del params
        return {**updates, "encoder": jax.tree.map(lambda u: rate * u, updates["encoder"])}

    return optax.stateless(scale)


def warmup_cosine(total_steps: int, *, peak: float, warmup: float = 0.1, final: float = 0.0) -> optax.Schedule:
    """Linear warm-up to the peak, then one half cosine: the default schedule.

    Args:
        total_steps: length in steps.
        peak: the largest learning rate.
        warmup: share of the steps spent rising.
        final: the last learning rate as a share of the peak.

    Returns:
        A function of the step.
    """
    rising = min(round(warmup * total_steps), total_steps - 1)
    return optax.warmup_cosine_decay_schedule(
        init_value=peak / max(1, rising),  # not 0: the first step would be wasted
        peak_value=peak,
        warmup_steps=rising,
        decay_steps=total_steps,
        end_value=final * peak,
    )


def warmup_poly(total_steps: int, *, peak: float, warmup: float = 0.0, power: float = 0.9) -> optax.Schedule:
    """Linear warm-up to the peak, then peak (1 - u)^power over what is left: the usual one for segmentation (DeepLab,
    arXiv 1606.00915).

    Args:
        total_steps: length in steps.
        peak: the largest learning rate.
        warmup: share of the steps spent rising.
        power: of the fall.

    Returns:
        A function of the step.
    """
    rising = min(round(warmup * total_steps), total_steps - 1)
    fall = optax.polynomial_schedule(peak, 0.0, power, total_steps - rising)
    if not rising:
        return fall
    return optax.join_schedules([optax.linear_schedule(peak / rising, peak, rising), fall], [rising])


def original_schedule(total_steps: int) -> optax.Schedule:
    """The original's learning rate: linear warm-up, then a cosine with two restarts whose peaks lie on a cosine of
    their own.

    From the released GraSS configuration: 0.6 to 4.8 over the first tenth, where it jumps to 3.597, falls to 0.0048 by
    40 %, and rises and falls again (to 1.195 at 70 %) until the end.

    Args:
        total_steps: length in steps.

    Returns:
        A function of the step (of any number of steps at once, as an array).
    """
    start, peak, end = 0.6, 4.8, 0.0048
    share, wave = 0.1, 0.334

    def schedule(step: jax.typing.ArrayLike) -> jax.Array:
        u = jnp.asarray(step, jnp.result_type(float)) / total_steps  # an int32 step would divide in float32 even in x64
        v = (u - share) / (1 - share)
        k = (v >= wave).astype(u.dtype)
        crest = end + 0.5 * (peak - end) * (1 + jnp.cos(jnp.pi * wave * (1 + k)))
        rising = start + (peak - start) * u / share
        waves = end + 0.5 * (crest - end) * (1 + jnp.cos(jnp.pi * v / wave))
        # 1e-6: the original's guard against rounding at the border
        return jnp.where(u + 1e-6 <= share, rising, waves)

    return schedule
