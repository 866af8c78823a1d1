"""FALSE (arXiv 2211.07928): SimCLR that moves the false negative of a batch to the positives.

    python main.py --config=configs/baselines/false.py                                     the sample, on a laptop
    python main.py --config=configs/baselines/false.py:potsdam --config.data.path=ARCHIVES

The presets are those of `configs/gs.py` without `reference`.

From the original (GeoX-Lab/FALSE, false_1gpu_resnet): temperature 0.5, threshold 0.9, confidence 1 (its README: less
than 1 is an option), embedding 128, 256 tiles a batch, 200 epochs; it shares views, LARC and schedule with GraSS, so
these are those of `configs/gs.py`.
Small presets: temperature 0.2, as in `configs/gs.py`.
One pair of a whole batch is looked at in a step, and nothing moves while its positive is below the threshold:
`false_negatives` in the log counts what moved, `positive_cosine` says how far the threshold is.
"""

from ml_collections import ConfigDict

from configs.baselines.recipe import baseline


def get_config(preset: str = "sample") -> ConfigDict:
    """Returns a preset of `configs/gs.py` with FALSE."""
    method = {
        "name": "false",
        "hidden": 0,  # the width of the features
        "embedding": 128,
        "temperature": 0.5,
        "threshold": 0.9,  # cosine of a positive pair from which on its view may have a false negative
        "confidence": 1.0,  # share of a false negative that moves to the positives
    }
    return baseline(method, preset, small={"temperature": 0.2})
