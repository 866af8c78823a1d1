"""VICReg (arXiv 2105.04906) on the main job's data, views and encoder.

    python main.py --config=configs/baselines/vicreg.py
    python main.py --config=configs/baselines/vicreg.py:potsdam --config.data.path=ARCHIVES

The presets are those of `configs/gs.py` without `reference`.

From the paper (section 4.2): an expander of three layers, 8192 channels each, batch norm on the first two; weights 25,
25 and 1; LARS with a learning rate of 0.2 per 256 tiles, weight decay 1e-6; cosine.
From the released code: no decay on biases and batch norm. (It also halves the variance term, which the paper does not.)
Otherwise than there: 256 tiles a batch, not 2048; our LARC scales biases and batch norm, too; views are the main job's.
Small presets: an expander 512 wide, twice the features' width, not 8192. The covariance term of embeddings whose
channels are independent is (e - 1) / (b - 1) a view, by chance alone: 8 at 64 tiles, between 4 in the paper's setting
and 32 at our full size; 8192 channels would make it 130. AdamW as in `configs/gs.py`.
"""

from ml_collections import ConfigDict

from configs.baselines.recipe import baseline

METHOD = {
    "name": "vicreg",
    "hidden": 8192,
    "embedding": 8192,
    "invariance": 25.0,
    "variance": 25.0,
    "covariance": 1.0,
}
SMALL = {"hidden": 512, "embedding": 512}
FULL = {
    "optimizer": {"name": "larc", "weight_decay": 1e-6, "decay_bias": False},
    "schedule": {"name": "cosine", "peak": 0.2},
}


def get_config(preset: str = "sample") -> ConfigDict:
    """Returns a preset of `configs/gs.py` with this method."""
    return baseline(METHOD, preset, small=SMALL, full=FULL)
