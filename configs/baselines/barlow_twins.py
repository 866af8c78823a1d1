"""Barlow Twins (arXiv 2103.03230) on the main job's data, views and encoder.

    python main.py --config=configs/baselines/barlow_twins.py
    python main.py --config=configs/baselines/barlow_twins.py:potsdam --config.data.path=ARCHIVES

The presets are those of `configs/gs.py` without `reference`.

From the paper (section 2.2): a projector of three layers, 8192 channels each, batch norm on the first two; lambda 5e-3;
LARS with a learning rate of 0.2 per 256 tiles, weight decay 1.5e-6, none on biases and batch norm; cosine to a
thousandth.
Otherwise than there: 256 tiles a batch, not 2048 (its section 4 finds that 256 works nearly as well); our LARC scales
biases and batch norm with everything else, where the paper gives them a rate of their own, 0.0048; views are the main
job's, the same distribution for both.
Small presets: a projector 512 wide, not 8192. A correlation measured on b tiles is off by about 1/sqrt(b), and e of
them stand in every row of the matrix: at 64 tiles e / b is then 8, between the paper's 4 and the 32 of its smallest
batch, while 8192 would make it 128 and the loss mostly noise. It is twice the features' width. AdamW as in
`configs/gs.py`.
"""

from ml_collections import ConfigDict

from configs.baselines.recipe import baseline

METHOD = {"name": "barlow_twins", "hidden": 8192, "embedding": 8192, "redundancy": 5e-3}
SMALL = {"hidden": 512, "embedding": 512}
FULL = {
    "optimizer": {"name": "larc", "weight_decay": 1.5e-6, "decay_bias": False},
    "schedule": {"name": "cosine", "peak": 0.2},
}


def get_config(preset: str = "sample") -> ConfigDict:
    """Returns a preset of `configs/gs.py` with this method."""
    return baseline(METHOD, preset, small=SMALL, full=FULL)
