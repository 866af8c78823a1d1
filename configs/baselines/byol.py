"""BYOL (arXiv 2006.07733) on the main job's data, views and encoder.

    python main.py --config=configs/baselines/byol.py
    python main.py --config=configs/baselines/byol.py:potsdam --config.data.path=ARCHIVES

The presets are those of `configs/gs.py` without `reference`.

From the paper: projector and predictor of one hidden layer with batch norm, 4096 and 256 channels wide (section 3.2).
From its 300-epoch setting, as long as our full-size run of 350 (section 5 and the released code's presets): first
momentum 0.99, LARS with a learning rate of 0.3 per 256 tiles, weight decay 1e-6, none on biases and batch norm; cosine.
(Its longest run, of 1000 epochs, has 0.996, 0.2 and 1.5e-6.)
Otherwise than there: 256 tiles a batch, not 4096; our LARC scales biases and batch norm, too; views are the main job's,
the same distribution for both.
Small presets: the hidden layers are twice as wide as the features, as in the paper, so 512, and the embedding is that
of `configs/gs.py`; momentum 0.97, the released code's for its shortest preset (40 epochs): the target must leave the
random network behind within a few hundred steps. AdamW as in `configs/gs.py`.
"""

from ml_collections import ConfigDict

from configs.baselines.recipe import baseline

METHOD = {"name": "byol", "hidden": 4096, "embedding": 256, "momentum": 0.99}
SMALL = {"hidden": 512, "embedding": 128, "momentum": 0.97}
FULL = {
    "optimizer": {"name": "larc", "weight_decay": 1e-6, "decay_bias": False},
    "schedule": {"name": "cosine", "peak": 0.3},
}


def get_config(preset: str = "sample") -> ConfigDict:
    """Returns a preset of `configs/gs.py` with this method."""
    return baseline(METHOD, preset, small=SMALL, full=FULL)
