"""Turn images of any size into georeferenced class maps."""

import itertools
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from grass_jax.data.rasters import Scene, UnusableImageError
from grass_jax.report.progress import counter
from grass_jax.segment.inputs import Job, find_jobs
from grass_jax.segment.scene_map import SceneMap
from grass_jax.segment.windows import sliding

# GDAL keeps what it has read, by default up to 5 % of the machine's memory: on a large machine more than all the rest.
GDAL_CACHE = 256 * 2**20


class Outcome(NamedTuple):
    """What became of the images: by map the pixels of each class, and by image that was skipped the reason."""

    written: dict[str, dict[str, int]]
    skipped: dict[str, str]


def predict_file(
    forward: Callable[[np.ndarray], Any], path: str | os.PathLike, output: str | os.PathLike, **settings: Any
) -> dict[str, int]:
    """Maps one image.

    Args:
        forward: (n, t, t, 3) uint8 -> logits (n, t, t, k).
        path: a GeoTIFF, PNG or JPEG.
        output: folder of the map.
        **settings: those of `predict_files`.

    Returns:
        pixels of each class by name, those without data left out.

    Raises:
        UnusableImageError: if the image cannot be mapped; and what `predict_files` raises.
    """
    written, skipped = predict_files(forward, [path], output, **settings)
    for image, reason in skipped.items():
        raise UnusableImageError(f"{image}: {reason}")
    return next(iter(written.values()))


def predict_files(
    forward: Callable[[np.ndarray], Any],
    inputs: str | os.PathLike | Sequence[str | os.PathLike],
    output: str | os.PathLike,
    *,
    classes: Sequence[str],
    colours: np.ndarray,
    window: int,
    overlap: float = 0.5,
    batch_size: int = 8,
    probabilities: bool = False,
    quicklook: bool = True,
    progress: bool = True,
) -> Outcome:
    """Maps images: `<output>/<name>.tif`, and on request `<name>_probabilities.tif` and `<name>.png`.

    A map has its image's size, CRS and transform (or ground control points). Pixels that the image marks as nodata, by
    value, mask or alpha channel, are nodata in the map, with the image's own value unless that is a class id. An image
    that cannot be read is named in the log and skipped, and nothing of it is left. The first three bands of a GeoTIFF
    are red, green and blue; a single one is grey.

    Args:
        forward: (n, t, t, 3) uint8 -> logits (n, t, t, k).
        inputs: a file, a folder, a pattern, or several of them: see `find_jobs`.
        output: folder of the products; those of earlier runs are replaced.
        classes: names of the k class ids.
        colours: (k, 3) uint8.
        window: side t of a window in pixels.
        overlap: share of a window that the next one covers again.
        batch_size: windows a batch.
        probabilities: write the probabilities of the classes as well.
        quicklook: draw the image beside its map, within 2048 x 2048 pixels, with a legend and the classes' shares.
        progress: show a line with the time left.

    Returns:
        what was written and what was skipped.

    Raises:
        FileNotFoundError, ValueError: as `find_jobs` and `sliding` raise them, before anything is written.
    """
    import rasterio  # GDAL loads slowly

    jobs = find_jobs(inputs, Path(output).expanduser(), probabilities=probabilities, quicklook=quicklook)
    outcome, maps, numbers, noted = Outcome({}, {}), {}, itertools.count(), set()

    def note(text: str, *values: object) -> None:
        if text not in noted:  # said of the first image, not of every one of thousands
            noted.add(text)
            line.clear()
            logging.info(text, *values)

    def skip(job: Job, error: Exception, left: int) -> None:
        from grass_jax.data.builders.tiling import reason  # TFDS loads slowly, and most runs skip nothing

        outcome.skipped[str(job.image)] = reason(error)
        line.clear()
        line.total -= left
        logging.warning("Skipped %s: %s", job.image, outcome.skipped[str(job.image)])

    def scenes() -> Iterator[Scene]:
        for job in jobs:
            try:
                current = SceneMap(job, classes, colours, note)
            except MemoryError:
                raise
            except Exception as error:  # decoders answer a broken file with anything
                skip(job, error, _pixels(job.image))
                continue
            maps[next(numbers)] = current
            yield current.scene

    def broken(number: int, error: Exception) -> None:
        current = maps.pop(number)
        current.abandon()
        skip(current.job, error, current.left)

    with (
        rasterio.Env(GDAL_CACHEMAX=GDAL_CACHE),
        counter(
            desc=f"mapping {len(jobs)} image(s)",
            total=sum(_pixels(job.image) for job in jobs),
            unit="px",
            unit_scale=True,
            disable=not progress,
            miniters=1,  # time alone decides
        ) as line,
    ):
        try:
            options: dict[str, Any] = {"window": window, "overlap": overlap, "batch_size": batch_size}
            for strip in sliding(forward, scenes(), broken=broken, **options):
                current = maps.get(strip.scene)
                if current is None:  # it broke further down while this was being computed
                    continue
                current.write(strip.y0, strip.x0, strip.logits)
                line.update(strip.logits.shape[0] * strip.logits.shape[1])
                if not current.left:
                    current.finish()
                    del maps[strip.scene]
                    outcome.written[str(current.job.map)] = current.counts
        finally:
            for current in maps.values():
                current.abandon()
    return outcome


def _pixels(image: Path) -> int:
    """Size of an image for the time left; 0 where it cannot be told."""
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning, RasterioIOError

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        try:
            with rasterio.open(image) as raster:  # the header of any format, where Pillow would check the size first
                return raster.width * raster.height
        except RasterioIOError:
            return 0
