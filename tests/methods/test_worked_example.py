"""The method of docs/adding_a_method.md is one: it is made by name, learns, is guided, and its loss is the formula."""

import re
import sys
import types
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from grass_jax.methods.registry import make_method, rules_of

CODE = re.findall(
    r"```python\n(.*?)```", (Path(__file__).parents[2] / "docs/adding_a_method.md").read_text(), re.DOTALL
)


@pytest.fixture
def module(monkeypatch):
    module = types.ModuleType("grass_jax.methods.uniformity")
    exec(CODE[0], module.__dict__)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


def test_it_learns_and_is_guided(module, tiny_encoder, train30, gs2):
    method = make_method(tiny_encoder, {"name": "uniformity", "embedding": 32, "weight": 1.0}, total_steps=30)
    _, metrics = train30(method)
    losses = [step["loss"] for step in metrics]
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.1
    assert metrics[-1]["mean_cosine"] < 0.9
    _, metrics = gs2(method)
    assert np.isfinite([list(step.values()) for step in metrics]).all()


def test_its_loss_is_the_formula(module):
    embeddings = np.random.default_rng(0).normal(size=(5, 2, 7))
    z = embeddings / np.linalg.norm(embeddings, axis=-1, keepdims=True)
    alignment = np.mean([np.sum((a - b) ** 2) for a, b in z])
    rows = z.reshape(-1, 7)
    pairs = [np.exp(-2 * np.sum((a - b) ** 2)) for i, a in enumerate(rows) for j, b in enumerate(rows) if i != j]
    found = module.uniformity_loss(jnp.asarray(embeddings, jnp.float32), weight=0.7)
    np.testing.assert_allclose(float(found), alignment + 0.7 * np.log(np.mean(pairs)), rtol=1e-5)


def test_its_config_is_one(module):
    names: dict = {}
    exec(CODE[1], names)
    config = names["get_config"]("sample")
    assert set(config.method) == {"name", *rules_of("uniformity")}
    assert [config[name].step for name in config.phases] == ["warmup_step"] * 2
