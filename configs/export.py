"""Takes a trained network out of its run, for PyTorch and its libraries, with a model card beside it.

    python main.py --config=configs/export.py --config.model=runs/gs_sample --config.output=encoder.safetensors
    python main.py --config=configs/export.py --config.model=RUN --config.format=timm --config.output=FOLDER
    python main.py --config=configs/export.py --config.model=RUN --config.licence="CC BY 4.0"

It takes seconds. A pretraining run gives its encoder; a fine-tuning run gives the whole network in a .safetensors file,
and its encoder alone with --config.part=encoder. The card says how each file is loaded. An earlier export of the same
name is replaced, but no folder or .md file of anything else.
"""

from ml_collections import ConfigDict


def get_config(preset: str = "weights") -> ConfigDict:
    """Returns the configuration; it has one preset, weights."""
    if preset != "weights":
        raise ValueError(f"configs/export.py has the preset weights, not {preset!r}.")
    return ConfigDict(
        {
            "task": "export",
            "name": "export",
            "preset": preset,
            "model": "",  # workdir of a pretraining or fine-tuning run
            "model_step": 0,  # 0: the one that counts
            "output": "",  # a .safetensors file, for timm a folder, for mmsegmentation a .pth file; empty: in --workdir
            "format": "torchvision",  # or timm, mmsegmentation
            "part": "",  # encoder: without the head of a fine-tuned network; empty: the whole of it
            "licence": "",  # of the data, for the card
            "data": "",  # what the data are, in your words, for the card
            "compilation_cache": "~/.cache/grass_jax/xla",
        }
    )
