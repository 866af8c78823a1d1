"""Turns images of any size into class maps: GeoTIFF in, GeoTIFF of class ids with CRS and colours out.

    python main.py --config=configs/predict.py --config.model=runs/segment_sample                  a drawn scene
    python main.py --config=configs/predict.py --config.model=RUN --config.input=SCENE.tif --config.output=FOLDER

The drawn scene takes seven seconds on 2 CPU cores with the small network.
The input is a file, a folder or a pattern ("scenes/*.tif"); the maps take its files' names.
"""

from ml_collections import ConfigDict


def get_config(preset: str = "sample") -> ConfigDict:
    """Returns the configuration; its one preset, sample, draws a scene where no input is given."""
    if preset != "sample":
        raise ValueError(f"configs/predict.py has the preset sample, not {preset!r}.")
    return ConfigDict(
        {
            "task": "predict",
            "name": "predict",
            "preset": preset,
            "model": "",  # workdir of a fine-tuning run
            "model_step": 0,  # 0: the one that counts
            "input": "",
            "output": "",  # folder of the maps; empty: the workdir
            "window": 0,  # 0: the tile size of the training
            "overlap": 0.5,
            "batch_size": 16,
            "probabilities": False,  # a band for each class beside the map
            "quicklook": True,  # a PNG of image and map with a legend
            "compilation_cache": "~/.cache/grass_jax/xla",
        }
    )
