"""GLCNet (arXiv 2106.10605): the two views agree in style, and in each region that both see.

    python main.py --config=configs/baselines/glcnet.py                                     the sample, on a laptop
    python main.py --config=configs/baselines/glcnet.py:potsdam --config.data.path=ARCHIVES

The presets are those of `configs/gs.py` without `reference`.

From the original (GeoX-Lab/G-RSIM, T-SS-GLCNet): temperature 0.5, embedding 64 and hidden layer 256 (of the style's
head), both losses at one half, four regions a tile; Adam at 1e-3 with decay 1e-5, and cosine, 256 tiles a batch.
Otherwise than there: the encoder's last feature map takes the place of the decoder's output, and a grid of 2 x 2
regions over all that both views see that of four squares of 48 of 224 pixels at random places, see
`grass_jax/methods/glcnet.py`; the hidden layer of the local head is as wide as the other's (64 there); AdamW; views are
the main job's, where the original crops 0.4 to 1 of the area. With 0.08 to 1, 7 % of the tiles share too little to have
regions (`matched` in the log); guided views share less, and a fine map or `--config.method.grid=1` helps there.
Small presets: temperature 0.2 and AdamW, as in `configs/gs.py`.
"""

from ml_collections import ConfigDict

from configs.baselines.recipe import baseline


def get_config(preset: str = "sample") -> ConfigDict:
    """Returns a preset of `configs/gs.py` with GLCNet."""
    method = {
        "name": "glcnet",
        "hidden": 256,
        "embedding": 64,
        "temperature": 0.5,
        "grid": 2,  # regions along each side of what both views see
        "global_weight": 0.5,  # of the styles' loss; the rest is the regions'
    }
    full = {
        "optimizer": {"name": "adamw", "weight_decay": 1e-5},
        "schedule": {"name": "cosine", "peak": 1e-3},
    }
    return baseline(method, preset, small={"temperature": 0.2}, full=full)
