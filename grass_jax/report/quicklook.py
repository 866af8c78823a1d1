"""A small picture of a large map, gathered while the map is written."""

import os
from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from grass_jax.data.labels import IGNORE
from grass_jax.report.figures import save
from grass_jax.report.maps import paint

SIDE = 960  # pixels of the longer side of image and map; the picture stays within 2048
DPI = 100


class QuickLook:
    """The image beside its map, every so many pixels, with a legend.

    Args:
        height: of the scene in pixels.
        width: of the scene in pixels.
    """

    def __init__(self, height: int, width: int):
        self.step = -(-max(height, width) // SIDE)
        size = -(-height // self.step), -(-width // self.step)
        self._image, self._ids = np.full((*size, 3), 255, np.uint8), np.full(size, IGNORE, np.uint8)

    def add(self, y0: int, x0: int, image: np.ndarray, ids: np.ndarray) -> None:
        """Takes a part of the scene, (h, w, 3) uint8, and of its map, (h, w) uint8, with their upper left corner."""
        down, right = -y0 % self.step, -x0 % self.step
        few = ids[down :: self.step, right :: self.step]
        y, x = (y0 + down) // self.step, (x0 + right) // self.step
        here = slice(y, y + few.shape[0]), slice(x, x + few.shape[1])
        self._ids[here] = few
        self._image[here] = image[down :: self.step, right :: self.step]

    def save(
        self, path: str | os.PathLike, counts: Mapping[str, int], colours: np.ndarray, *, title: str, nodata: bool
    ) -> None:
        """Draws the picture.

        Args:
            path: PNG file to write.
            counts: pixels of each class, by name.
            colours: (k, 3) uint8.
            title: Title of the picture.
            nodata: whether the legend explains pixels without data.
        """
        height, width = self._ids.shape
        zoom = max(SIDE / 2, *self._ids.shape) / max(self._ids.shape)  # the smallest scenes are drawn larger
        below = width >= 2 * height
        names = _legend(counts, colours, nodata)
        panel = np.array([width, height]) * zoom / DPI
        across = max(5.0, panel[0] + 0.2 if below else 2 * panel[0] + 0.4)
        columns = max(1, min(len(names), int(across * DPI / (60 + 7 * max(len(name) for name in names)))))
        lines = -(-len(names) // columns)
        down = (2 * panel[1] + 0.8 if below else panel[1] + 0.6) + 0.22 * lines + 0.2
        figure = Figure(figsize=(across, down), dpi=DPI, layout="constrained")
        figure.suptitle(title, fontsize=11)
        axes = figure.subplots(*((2, 1) if below else (1, 2)))
        pictures = {"image": self._image, "map": paint(self._ids, np.asarray(colours))}
        for ax, (name, picture) in zip(axes, pictures.items(), strict=True):
            ax.imshow(picture, interpolation="nearest" if name == "map" else "auto")
            ax.set(xticks=[], yticks=[])
            ax.set_title(name, fontsize=10)
        figure.legend(handles=list(names.values()), loc="outside lower center", ncols=columns, fontsize=9)
        save(figure, path)


def _legend(counts: Mapping[str, int], colours: np.ndarray, nodata: bool) -> dict[str, Patch]:
    total = max(1, sum(counts.values()))
    legend = {}
    for (name, count), colour in zip(counts.items(), colours, strict=True):
        label = f"{name} ({100 * count / total:.1f} %)"
        legend[label] = Patch(facecolor=tuple(colour / 255), edgecolor="0.5", lw=0.5, label=label)
    if nodata:
        legend["no data"] = Patch(facecolor="0.8", edgecolor="0.6", hatch="////", label="no data")
    return legend
