"""SimSiam (arXiv 2011.10566) on the main job's data, views and encoder.

    python main.py --config=configs/baselines/simsiam.py
    python main.py --config=configs/baselines/simsiam.py:potsdam --config.data.path=ARCHIVES

The presets are those of `configs/gs.py` without `reference`.

From the paper (section 3): a projector of three layers, 2048 channels each, batch norm on all of them (the last without
scale and bias, as in the released code); a predictor of 512 and 2048 channels, batch norm on the first; SGD with
momentum 0.9, a learning rate of 0.05 per 256 tiles, weight decay 1e-4; cosine, for the predictor, too (its table 1
gains 0.4 points with a predictor whose rate does not decay).
Otherwise than there: 256 tiles a batch, not 512, and a short warm-up; no decay on batch norm.
Small presets: a projector 512 wide, twice the features' width, and a predictor as wide as that. With the paper's ratio,
a quarter, the narrow network collapses part of the way: on the sample the mean cosine between different tiles was 0.57
after 50 updates and 0.78 after 130; with the wider predictor it was 0.12 after 50 and 0.09 after 80. AdamW as in
`configs/gs.py`.
"""

from ml_collections import ConfigDict

from configs.baselines.recipe import baseline

METHOD = {"name": "simsiam", "hidden": 2048, "embedding": 2048, "bottleneck": 512}
SMALL = {"hidden": 512, "embedding": 512, "bottleneck": 512}
FULL = {
    "optimizer": {"name": "sgd", "momentum": 0.9, "weight_decay": 1e-4},
    "schedule": {"name": "cosine", "peak": 0.05},
}


def get_config(preset: str = "sample") -> ConfigDict:
    """Returns a preset of `configs/gs.py` with this method."""
    return baseline(METHOD, preset, small=SMALL, full=FULL)
