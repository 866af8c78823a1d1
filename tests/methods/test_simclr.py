"""SimCLR learns; its loss is tested in test_losses.py, its GS step against the original in test_steps.py."""

import numpy as np

from grass_jax.methods.simclr import simclr


def test_thirty_updates(train30, tiny_encoder):
    _, metrics = train30(simclr(tiny_encoder, temperature=0.2, embedding=32))
    losses = [step["loss"] for step in metrics]
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.3
    last = metrics[-1]
    assert last["embedding_std"] > 0.3 / np.sqrt(32)  # 1/sqrt(32) fills the sphere
    assert last["mean_cosine"] < 0.9


def test_gs_steps(gs2, tiny_encoder):
    state, metrics = gs2(simclr(tiny_encoder, temperature=0.2, embedding=32))
    assert int(state.step) == 2
    assert np.isfinite([list(step.values()) for step in metrics]).all()
    assert metrics[-1]["box_area"] < 1
