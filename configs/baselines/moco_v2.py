"""MoCo v2 (arXiv 2003.04297): InfoNCE against a queue of keys from a moving average of the network.

    python main.py --config=configs/baselines/moco_v2.py                       the embedded sample
    python main.py --config=configs/baselines/moco_v2.py:potsdam --config.data.path=ARCHIVES

The presets are those of `configs/gs.py`, without `reference`.

The paper's: the head (two layers, the hidden one as wide as the features, 2048; 128 at the end), temperature 0.2
(section 3), momentum 0.999 and SGD with decay 1e-4 (MoCo, arXiv 1911.05722, section 3.3 and 4), a cosine schedule.
Otherwise than there, for small data:
- A queue of 65,536 would hold every tile of Potsdam several times, as a negative of itself. 4,096 are the last 2,048
  tiles; 1,024, with the narrow encoder, the last 512.
- Momentum 0.99 with the narrow encoder, as in the authors' own demo on small images (CIFAR-10): a run of a few hundred
  updates would leave a moving average of 0.999 where it began.
- Learning rate 0.3: DenseCL's for COCO (arXiv 2011.09157, section 4.1), where 0.03 is for the million images of
  ImageNet; with the warm-up of `configs/gs.py`.
- The loss is symmetric, which counts like twice the epochs (the authors' demo). Batch norm sees the whole batch and
  keys are not shuffled; on CIFAR-10 the authors measured 4 % less without shuffling, at 800 epochs.
The views are those of `configs/gs.py`, as for every method (the paper's crops have an area of at least 0.2, and half
the jitter).
"""

from ml_collections import ConfigDict

from configs.baselines.recipe import baseline

METHOD = {"name": "moco_v2", "hidden": 0, "embedding": 128, "queue": 4096, "momentum": 0.999, "temperature": 0.2}
SMALL = {"queue": 1024, "momentum": 0.99}
FULL = {
    "optimizer": {"name": "sgd", "weight_decay": 1e-4},
    "schedule": {"name": "cosine", "peak": 0.3},
}


def get_config(preset: str = "sample") -> ConfigDict:
    """Returns the configuration of a preset: sample, folder, folder_full, potsdam, loveda_urban, ..."""
    return baseline(METHOD, preset, small=SMALL, full=FULL)
