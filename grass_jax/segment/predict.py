"""Turn images of any size into georeferenced class maps."""

import itertools
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging

from grass_jax.bands import RGB, Bands
from grass_jax.data.layout import OtherBandsError
from grass_jax.data.rasters import Scene, UnusableImageError, reason
from grass_jax.report.progress import counter
from grass_jax.segment.inputs import Job, find_jobs
from grass_jax.segment.map_writer import OutputError
from grass_jax.segment.scene_map import SceneMap
from grass_jax.segment.windows import sliding

GSD_TOLERANCE = 0.1  # of the metres per pixel: a network hardly minds less


class Outcome(NamedTuple):
    """What became of the images: by map the pixels of each class, and by image that was skipped the reason."""

    written: dict[str, dict[str, int]]
    skipped: dict[str, str]


def predict_file(
    forward: Callable[[np.ndarray], Any], path: str | os.PathLike, output: str | os.PathLike, **settings: Any
) -> dict[str, int]:
    """Maps one image.

    Args:
        forward: (n, t, t, c) as stored -> logits (n, t, t, k).
        path: a GeoTIFF, PNG or JPEG.
        output: folder of the map.
        **settings: those of `predict_files`.

    Returns:
        pixels of each class by name, those without data left out.

    Raises:
        UnusableImageError: if the image cannot be mapped; and what `predict_files` raises.
    """
    written, skipped = predict_files(forward, [path], output, **settings)
    for image, why in skipped.items():
        raise UnusableImageError(f"{image}: {why}")
    return next(iter(written.values()))


def predict_files(
    forward: Callable[[np.ndarray], Any],
    inputs: str | os.PathLike | Sequence[str | os.PathLike],
    output: str | os.PathLike,
    *,
    classes: Sequence[str],
    colours: np.ndarray,
    window: int,
    bands: Bands = RGB,
    overlap: float = 0.5,
    batch_size: int = 8,
    probabilities: bool = False,
    quicklook: bool = True,
    progress: bool = True,
    gsd: float | None = None,
) -> Outcome:
    """Maps images: `<output>/<name>.tif`, and on request `<name>_probabilities.tif` and `<name>.png`.

    The processes of a job share the images.
    A map has its image's size, CRS and transform (or ground control points). Pixels that the image marks as nodata, by
    value, mask or alpha channel, are nodata in the map. Their value is the image's own nodata value, unless that is a
    class id (as 0 is) or no whole number up to 255: then it is 255, which the log says. An image that cannot be read is
    named in the log and skipped, and nothing of it is left.

    Args:
        forward: (n, t, t, c) as stored -> logits (n, t, t, k).
        inputs: a file, a folder, a pattern, or several of them: see `find_jobs`.
        output: folder of the products; those of earlier runs are replaced.
        classes: names of the k class ids.
        colours: (k, 3) uint8.
        window: side t of a window in pixels.
        bands: which bands of the images are read; those of 8-bit colour may be a single grey one.
        overlap: share of a window that the next one covers again.
        batch_size: windows a batch.
        probabilities: write the probabilities of the classes as well.
        quicklook: draw the image beside its map, within 2048 x 2048 pixels, with a legend and the classes' shares.
        progress: show a line with the time left.
        gsd: metres per pixel that the network was trained at; None if unknown. The log names other resolutions.

    Returns:
        what was written and what was skipped.

    Raises:
        FileNotFoundError, ValueError: as `find_jobs` and `sliding` raise them, before anything is written.
        OutputError: a ValueError, if the output folder cannot be made or written, at the start or, as on a full disk,
            later; finished maps stay, and nothing of an unfinished one does.
    """
    import rasterio  # GDAL loads slowly

    if gsd is not None and not gsd > 0:
        raise ValueError(f"gsd must be above 0 metres per pixel, not {gsd}.")
    jobs = find_jobs(inputs, Path(output).expanduser(), probabilities=probabilities, quicklook=quicklook)
    jobs = jobs[jax.process_index() :: jax.process_count()]
    _make_writable(Path(output).expanduser())
    progress = progress and jax.process_index() == 0
    outcome, maps, numbers, noted = Outcome({}, {}), {}, itertools.count(), set()

    def note(text: str, *values: object, level: int = logging.INFO) -> None:
        if text not in noted:  # said of the first image, not of every one of thousands
            noted.add(text)
            line.clear()
            logging.log(level, text, *values)

    def compare_gsd(job: Job, scene: Scene) -> None:
        found = scene.georeference.gsd if scene.georeference is not None else None
        if gsd is not None and found is not None and abs(found / gsd - 1) > GSD_TOLERANCE:
            text = f"%s: {_metres(found)} per pixel, the network was trained at {_metres(gsd)}; resample the image "
            note(text + "first, or expect worse maps.", job.image, level=logging.WARNING)

    def skip(job: Job, error: Exception, left: int) -> None:
        advice = ": give an image with the network's bands" if isinstance(error, OtherBandsError) else ""
        outcome.skipped[str(job.image)] = reason(error) + advice
        line.clear()
        line.total -= left
        logging.warning("Skipped %s: %s", job.image, outcome.skipped[str(job.image)])

    def scenes() -> Iterator[Scene]:
        for job in jobs:
            try:
                current = SceneMap(job, classes, colours, bands, note)
            except (MemoryError, OutputError):
                raise
            except Exception as error:  # decoders answer a broken file with anything
                skip(job, error, _pixels(job.image))
                continue
            compare_gsd(job, current.scene)
            maps[next(numbers)] = current
            yield current.scene

    def broken(number: int, error: Exception) -> None:
        current = maps.pop(number, None)
        if current is not None:
            current.abandon()
            skip(current.job, error, current.left)

    with (
        rasterio.Env(),  # one for all files, which are not closed in the order that they are opened in
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
                try:
                    current.write(strip.y0, strip.x0, strip.logits)
                except (MemoryError, ValueError):  # a full disk, other classes: so it would go on
                    raise
                except Exception as error:  # decoders answer a broken file with anything
                    broken(strip.scene, error)
                    continue
                line.update(strip.logits.shape[0] * strip.logits.shape[1])
                if not current.left:
                    current.finish()
                    del maps[strip.scene]
                    outcome.written[str(current.job.map)] = current.counts
        finally:
            for current in maps.values():
                current.abandon()
    return outcome


def _make_writable(folder: Path) -> None:
    """Makes a folder and a file in it, which is gone again: better told now than of every image."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"\0")
    except OSError as error:
        what = "is a file" if os.path.isfile(folder) else f"cannot be made or written ({error.strerror})"
        raise OutputError(f"The output folder {folder} {what}: choose another folder.") from error


def _metres(gsd: float) -> str:
    return f"{gsd:.2f} m" if gsd >= 0.1 else f"{gsd:.4f} m"


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
