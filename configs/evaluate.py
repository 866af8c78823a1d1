"""Scores a fine-tuned network on all scenes of another labelled folder, or on the sample's test scenes.

    python main.py --config=configs/evaluate.py:folder --config.model=RUN --config.data.path=FOLDER \
        --config.data.classes="('field','forest','town')"

It takes as long as predicting the folder's images: a minute for 33 megapixels with the small network on 2 CPU cores.
All scenes of the folder count, whatever `config.data.test` says: it is not for the folder that the network learned
from.
The classes are the model's, in its order; `config.data.mask_values` says how this folder's masks hold them.
"""

from ml_collections import ConfigDict

from configs import labelled


def get_config(preset: str = "sample") -> ConfigDict:
    """Returns the configuration of a preset: sample or folder."""
    if preset not in PRESETS:
        raise ValueError(f"configs/evaluate.py has the presets {', '.join(PRESETS)}, not {preset!r}.")
    return ConfigDict(
        {
            "task": "evaluate",
            "name": "evaluate",
            "preset": preset,
            "model": "",  # workdir of a fine-tuning run
            "model_step": 0,  # 0: the one that counts
            "data": PRESETS[preset],
            "evaluate": labelled.scoring(),
            "compilation_cache": "~/.cache/grass_jax/xla",
        }
    )


PRESETS = {"sample": labelled.SAMPLE, "folder": labelled.section()}
