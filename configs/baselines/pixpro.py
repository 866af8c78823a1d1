"""PixPro (arXiv 2011.10043): cells of the two views that look at the same place agree, one smoothed by likeness.

    python main.py --config=configs/baselines/pixpro.py                                     the sample, on a laptop
    python main.py --config=configs/baselines/pixpro.py:potsdam --config.data.path=ARCHIVES

The presets are those of `configs/gs.py` without `reference`.

From the paper's released code (zdaxie/PixPro, pixpro_base_r50_400ep): hidden layer 4096, embedding 256, distance 0.7,
gamma 2 with one linear layer, first momentum 0.99; LARS with a learning rate of 1 per 256 tiles, weight decay 1e-5,
none on biases and batch norm; cosine. Otherwise than there: 256 tiles a batch, not 1024; our LARC scales biases and
batch norm, too; views are the main job's, where the paper has BYOL's with the same crops (0.08 to 1 of the area).
Small presets: a hidden layer twice as wide as the features, as in the paper, so 512, and an embedding of 64; momentum
0.97, as the average must leave the random network behind within a few hundred steps. AdamW as in `configs/gs.py`.
"""

from ml_collections import ConfigDict

from configs.baselines.recipe import baseline


def get_config(preset: str = "sample") -> ConfigDict:
    """Returns a preset of `configs/gs.py` with PixPro."""
    method = {
        "name": "pixpro",
        "hidden": 4096,
        "embedding": 256,
        "distance": 0.7,  # below which two cells are a pair, in diagonals of the larger of the two views' cells
        "gamma": 2.0,  # sharpness of the propagation
        "momentum": 0.99,
    }
    small = {"hidden": 512, "embedding": 64, "momentum": 0.97}
    full = {
        "optimizer": {"name": "larc", "weight_decay": 1e-5, "decay_bias": False},
        "schedule": {"name": "cosine", "peak": 1.0},
    }
    return baseline(method, preset, small=small, full=full)
