"""What steps cost is measured once for each setting, and remembered."""

import json

import pytest

from grass_jax.comparison.costs import Costs


@pytest.fixture
def measured(monkeypatch):
    """The phases whose step was measured; each is said to cost 1.25."""
    phases = []
    monkeypatch.setattr(Costs, "_measure", lambda self, config, phase: phases.append(phase) or 1.25)
    return phases


@pytest.mark.parametrize(
    "change",
    [
        {"model.name": "resnet34"},
        {"model.width": 8},
        {"model.output_stride": 16},
        {"model.dtype": "bfloat16"},
        {"batch_size": 16},
        {"micro_batches": 2},
        {"augment.size": 48},
        {"guidance.size": 16},
    ],
    ids=lambda change: next(iter(change)),
)
def test_other_settings_are_measured_anew(tiny, tmp_path, measured, change):
    for _ in range(2):  # the second one reads what the first one wrote
        costs = Costs(tmp_path, tiny())
        assert costs.of(tiny(), "warmup") == 1.0
        assert costs.of(tiny(**{"log.every": 3, "gs.epochs": 5}), "gs") == costs.of(tiny(**change), "gs") == 1.25
        assert measured == ["gs", "gs"]
    if "guidance.size" not in change:
        assert costs.of(tiny(**change), "warmup") == 1.25
        assert measured == ["gs", "gs", "warmup"]


@pytest.mark.parametrize("damage", [lambda _: "null", lambda t: t[:-4], lambda t: t.replace("1.25", "null")])
def test_a_damaged_file_is_measured_again(tiny, tmp_path, measured, damage):
    path = tmp_path / "costs.json"
    Costs(tmp_path, tiny()).of(tiny(), "gs")
    whole = path.read_text()
    path.write_text(damage(whole))
    assert Costs(tmp_path, tiny()).of(tiny(), "gs") == 1.25
    assert measured == ["gs", "gs"]
    assert json.loads(path.read_text()) == json.loads(whole)
