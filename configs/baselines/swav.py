"""SwAV (arXiv 2006.09882): each view predicts the prototypes to which the other view is assigned.

    python main.py --config=configs/baselines/swav.py                          the embedded sample
    python main.py --config=configs/baselines/swav.py:potsdam --config.data.path=ARCHIVES

The presets are those of `configs/gs.py`, without `reference`.

The paper's (its appendix A and the authors' scripts): the projector (2048, batch norm, 128), temperature 0.1, 3
iterations of Sinkhorn-Knopp over the global batch, prototypes frozen in about the first epoch, and for 256 images a
batch LARC with learning rate 0.6, decay 1e-6 and a cosine to a thousandth of it (here with the warm-up of
`configs/gs.py`). Otherwise than there:
- Epsilon 0.03 instead of 0.05, the authors' advice against a collapse at the beginning. On the sample, with an encoder
  of width 16, 160 updates at 0.05 ended with all codes uniform and the loss at log k; at 0.03 it went on falling.
- Two views, as for every method here: no multi-crop, to which the paper owes its best results.
- As many prototypes for each tile of a batch as its 3,000 are for 4,096 images, so that codes need no queue of earlier
  embeddings: 192 of 256, and with the narrow encoder 48 of 64. Give more with a larger `config.batch_size`.
- A hidden layer of 256 with the narrow encoder: as wide as its features, as 2048 is with ResNet-50.
"""

from ml_collections import ConfigDict

from configs.baselines.recipe import baseline

METHOD = {
    "name": "swav",
    "hidden": 2048,
    "embedding": 128,
    "prototypes": 192,
    "temperature": 0.1,
    "epsilon": 0.03,
    "iterations": 3,
    "freeze_steps": 54,  # an epoch of Potsdam
}
SMALL = {"hidden": 256, "prototypes": 48, "freeze_steps": 18}  # an epoch of the sample
FULL = {"schedule": {"name": "cosine", "peak": 0.6}}


def get_config(preset: str = "sample") -> ConfigDict:
    """Returns the configuration of a preset: sample, folder, folder_full, potsdam, loveda_urban, ..."""
    return baseline(METHOD, preset, small=SMALL, full=FULL)
