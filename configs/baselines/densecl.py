"""DenseCL (arXiv 2011.09157): MoCo v2's contrast of whole views, and the same of single cells of the feature maps.

    python main.py --config=configs/baselines/densecl.py                       the embedded sample
    python main.py --config=configs/baselines/densecl.py:potsdam --config.data.path=ARCHIVES

The presets are those of `configs/gs.py`, without `reference`.

The paper's (section 4.1 and the authors' configuration for COCO): both heads (two layers, the hidden one as wide as the
features, 2048; 128 at the end), temperature 0.2, momentum 0.999, lambda 0.5, SGD with learning rate 0.3 and decay 1e-4,
256 images a batch, a cosine schedule (here with the warm-up of `configs/gs.py`). Otherwise than there, for small data:
queues of 4,096 instead of 65,536, and with the narrow encoder of 1,024 and momentum 0.99; the loss is symmetric, and
keys are not shuffled: see `moco_v2.py`. The views are those of `configs/gs.py`, as for every method.
"""

from ml_collections import ConfigDict

from configs.baselines import moco_v2
from configs.baselines.recipe import baseline

METHOD = {**moco_v2.METHOD, "name": "densecl", "dense_weight": 0.5}


def get_config(preset: str = "sample") -> ConfigDict:
    """Returns the configuration of a preset: sample, folder, folder_full, potsdam, loveda_urban, ..."""
    return baseline(METHOD, preset, small=moco_v2.SMALL, full=moco_v2.FULL)
