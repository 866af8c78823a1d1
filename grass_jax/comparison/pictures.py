"""The pictures of a comparison's report: crops of scenes with each arm's prediction, kept beside its run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from grass_jax.report.atomic import replacing
from grass_jax.segment.evaluate import Evaluation

Scene = tuple[str, np.ndarray, np.ndarray, dict[str, np.ndarray]]  # name, image, truth, prediction of each arm


def save_pictures(path: Path, evaluation: Evaluation) -> None:
    """Writes the pictures of one arm.

    Raises:
        DiskFullError: there is no room for them.
    """
    arrays: dict[str, Any] = {"names": np.array([picture.name for picture in evaluation.pictures])}
    for n, picture in enumerate(evaluation.pictures):
        arrays |= {f"image_{n}": picture.image, f"truth_{n}": picture.truth, f"prediction_{n}": picture.prediction}
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)


def read_pictures(paths: Mapping[str, Path]) -> list[Scene]:
    """Reads the pictures of arms, by name, where there are some."""
    found: dict[str, Scene] = {}
    for name, path in paths.items():
        if not path.exists():
            continue
        with np.load(path) as file:
            for n, scene in enumerate(file["names"].tolist()):
                images = (file[f"{kind}_{n}"] for kind in ("image", "truth"))
                found.setdefault(scene, (scene, *images, {}))[3][name] = file[f"prediction_{n}"]
    return list(found.values())
