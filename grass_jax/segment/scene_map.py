"""One image on its way to its map: the open file, and the products under their temporary names."""

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from grass_jax.bands import Bands, picture
from grass_jax.data.geotiff import georeference, open_raster
from grass_jax.data.layout import Layout
from grass_jax.data.rasters import TIFF_SUFFIXES, open_scene
from grass_jax.report.atomic import replacing
from grass_jax.report.quicklook import QuickLook
from grass_jax.segment.inputs import Job
from grass_jax.segment.map_writer import (
    choose_nodata,
    class_map,
    encode_probabilities,
    probability_map,
    replacing_raster,
    writing,
)

Note = Callable[..., None]  # a log message and its values


class Header(NamedTuple):
    """What the map takes over from the image: place on the ground as rasterio's options, and the nodata value."""

    placement: dict[str, Any]
    nodata: float | None


def read_header(path: Path, bands: Bands, note: Note) -> Header:
    """Reads what a map takes over from its image; a PNG or JPEG has nothing of it.

    Args:
        path: the image.
        bands: those that are read.
        note: told what a user should know about the image.
    """
    if path.suffix.lower() not in TIFF_SUFFIXES:
        return Header({}, None)
    with open_raster(path) as raster:
        if raster.count > len(bands):
            read = ", ".join(map(str, bands.numbers))
            note("%s has %d bands: the network reads %s.", path, raster.count, read)
        points, crs = raster.gcps
        if points:
            return Header({"gcps": points, "crs": crs}, raster.nodata)
        place = georeference(raster)
        if place is None or place.crs is None:
            note("%s has no CRS, and so its map has none.", path)
        return Header(place._asdict() if place else {}, raster.nodata)


class SceneMap:
    """Takes a scene's logits strip by strip, and puts the products in place when all of it has been seen.

    Args:
        job: the image and its products.
        classes: names of the k class ids.
        colours: (k, 3) uint8.
        bands: which bands of the image are read.
        note: told what a user should know about the image.

    Raises:
        UnusableImageError: if the image cannot be mapped; other errors where it is broken.
        OutputError: if the products cannot be made.
    """

    def __init__(self, job: Job, classes: Sequence[str], colours: np.ndarray, bands: Bands, note: Note):
        self.job, self.classes, self._colours, self._bands = job, classes, colours, bands
        self._counts = np.zeros(len(classes), np.int64)
        with contextlib.ExitStack() as stack:
            self.scene = scene = stack.enter_context(open_scene(job.image, layout=Layout.of(bands), verify=False))
            header = read_header(job.image, bands, note)
            self.left = scene.height * scene.width
            self._nodata = choose_nodata(header.nodata, len(classes)) if scene.valid is not None else None
            if self._nodata is not None and header.nodata not in (None, self._nodata):
                why = "a class id" if header.nodata in range(len(classes)) else "which a map cannot hold"
                # The values stand in the text, as a note is made once for each text.
                note(f"The nodata value of %s is {header.nodata:g}, {why}: it is {self._nodata} in the map.", job.image)
            with writing(job.map):
                self._create(stack, header)
            self._open = stack.pop_all()  # from here on `finish` or `abandon` closes

    def _create(self, stack: contextlib.ExitStack, header: Header) -> None:
        job, size, nodata = self.job, (self.scene.height, self.scene.width), self._nodata
        options: dict[str, Any] = {"classes": self.classes, "placement": header.placement}
        # What is entered last ends first: all files are complete before one is put in place, and the map comes last.
        ids = stack.enter_context(replacing_raster(job.map))
        shares = stack.enter_context(replacing_raster(job.probabilities)) if job.probabilities else None
        self._look = QuickLook(*size) if job.quicklook else None
        self._picture = stack.enter_context(replacing(job.quicklook)) if job.quicklook else None
        self._write_ids = stack.enter_context(class_map(ids, *size, colours=self._colours, nodata=nodata, **options))
        self._write_probabilities = None
        if shares is not None:
            marked = nodata is not None
            self._write_probabilities = stack.enter_context(probability_map(shares, *size, nodata=marked, **options))

    @property
    def counts(self) -> dict[str, int]:
        """Pixels of each class so far, nodata left out."""
        return dict(zip(self.classes, self._counts.tolist(), strict=True))

    def write(self, y0: int, x0: int, logits: np.ndarray) -> None:
        """Takes a strip of logits (rows, w, k) with its upper left corner.

        Raises:
            ValueError: if the number of classes is another than that of the names.
            OutputError: if the products cannot be written; other errors where the image is broken.
        """
        rows, width, classes = logits.shape
        if classes != len(self.classes):
            raise ValueError(f"The network has {classes} classes, but {len(self.classes)} are named: name them all.")
        ids = logits.argmax(-1).astype(np.uint8)
        valid = None
        if self.scene.valid is not None:
            valid = self.scene.valid(y0, y0 + rows)[:, x0 : x0 + width]
            self._counts += np.bincount(ids[valid], minlength=classes)
            ids[~valid] = self._nodata
        else:
            self._counts += np.bincount(ids.reshape(-1), minlength=classes)
        if self._look is not None:
            image = picture(self.scene.rows(y0, y0 + rows)[:, x0 : x0 + width], self._bands)
            self._look.add(y0, x0, image, ids)
        with writing(self.job.map):
            self._write_ids(y0, x0, ids)
            if self._write_probabilities is not None:
                self._write_probabilities(y0, x0, encode_probabilities(logits, valid))
        self.left -= rows * width

    def finish(self) -> None:
        """Puts the products in place, the map last.

        Raises:
            OutputError: if one of them cannot be written; then none is put in place.
        """
        with writing(self.job.map):
            if self._look is not None and self._picture is not None:
                title, marked = self.job.image.name, self._nodata is not None
                self._look.save(self._picture, self.counts, self._colours, title=title, nodata=marked)
            self._open.close()

    def abandon(self) -> None:
        """Closes the image and removes what has been written."""
        error = InterruptedError(f"{self.job.image} was not mapped to its end.")
        with contextlib.suppress(Exception):  # a full disk fails once more as the files are closed
            self._open.__exit__(type(error), error, None)
