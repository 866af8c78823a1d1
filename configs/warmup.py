"""The first phase alone: instance discrimination (SimCLR).

    python main.py --config=configs/warmup.py:folder --config.data.path=FOLDER

The presets are those of `configs/gs.py`.
"""

from ml_collections import ConfigDict

from configs import gs


def get_config(preset: str = "sample") -> ConfigDict:
    """Returns the configuration of a preset of `configs/gs.py` with the warm-up as its only phase."""
    config = gs.get_config(preset)
    config.name, config.phases = "warmup", ("warmup",)
    return config
