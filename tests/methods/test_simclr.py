"""SimCLR learns; its loss is tested in test_losses.py, its GS step against the original in test_steps.py."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from grass_jax.methods.simclr import simclr
from grass_jax.models.heads import ProjectionHead


def test_the_first_parameters_are_those_of_older_runs():
    """Their checkpoints fit, and a seed goes on meaning the same start."""

    class Encoder(nn.Module):
        @nn.compact
        def __call__(self, x, *, train):
            return nn.BatchNorm(use_running_average=not train)(nn.Conv(4, (3, 3), strides=2)(x))

    views = jnp.zeros((2, 2, 8, 8, 3))
    params, stats, extra = simclr(Encoder(), temperature=0.2, embedding=3).init(jax.random.key(0), views)
    first, second = jax.random.split(jax.random.key(0))
    encoder = Encoder().init(first, jnp.zeros((4, 8, 8, 3)), train=True)
    head = ProjectionHead(3).init(second, jnp.zeros((2, 2, 4)))
    assert (params.keys(), stats.keys(), extra) == ({"encoder", "head"}, {"encoder"}, ())
    jax.tree.map(np.testing.assert_array_equal, params["encoder"], encoder["params"])
    jax.tree.map(np.testing.assert_array_equal, stats["encoder"], encoder["batch_stats"])
    jax.tree.map(np.testing.assert_array_equal, params["head"], head["params"])


def test_thirty_updates(train30, tiny_encoder):
    _, metrics = train30(simclr(tiny_encoder, temperature=0.2, embedding=32))
    losses = [step["loss"] for step in metrics]
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.2
    last = metrics[-1]
    assert last["embedding_std"] > 0.3 / np.sqrt(32)  # 1/sqrt(32) fills the sphere
    assert last["mean_cosine"] < 0.9
