"""Which images to map, and where their maps go."""

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from grass_jax.data.folder import find_images
from grass_jax.data.rasters import SUFFIXES


class Job(NamedTuple):
    """An image and its products: the map, the probabilities and the quick look, those that are not asked for None."""

    image: Path
    map: Path
    probabilities: Path | None
    quicklook: Path | None


def find_jobs(
    inputs: str | os.PathLike | Sequence[str | os.PathLike], output: Path, *, probabilities: bool, quicklook: bool
) -> list[Job]:
    """Finds the images of files, folders and patterns, and names their products.

    Args:
        inputs: an image file, a folder (searched to the bottom), a pattern such as `scenes/*.tif`, or several of them.
        output: folder of the products. The images of a folder keep their subfolders in it; images under `output`
            itself are left out, so that a second run does not map the maps of the first.
        probabilities: whether probabilities are written.
        quicklook: whether quick looks are written.

    Returns:
        the jobs, each image once.

    Raises:
        FileNotFoundError: if there is no such file, folder or match.
        ValueError: if two products would be one file, or a product would replace an image; or of `find_images`.
    """
    several = [inputs] if isinstance(inputs, str | os.PathLike) else inputs
    found: dict[Path, tuple[Path, Path]] = {}  # by the file behind a link: the path as given, and the name of the map
    for one in several:
        for image, name in _images(os.path.expanduser(os.fspath(one)), output.resolve()):
            found.setdefault(image.resolve(), (image, name))
    if not found:
        raise FileNotFoundError(f"There is no image to map besides those in the output folder {output}: name others.")
    jobs, made_from = [], {}
    for image, name in found.values():
        stem = output / name
        products = [
            stem.with_name(f"{stem.name}.tif"),
            stem.with_name(f"{stem.name}_probabilities.tif") if probabilities else None,
            stem.with_name(f"{stem.name}.png") if quicklook else None,
        ]
        for product in filter(None, products):
            if product.resolve() in found:
                raise ValueError(f"The output {product} would replace an image to map: choose another output folder.")
            other = made_from.setdefault(product, image)
            if other != image:
                raise ValueError(
                    f"{other} and {image} would both be mapped to {product}: rename one, or give a folder."
                )
        jobs.append(Job(image, *products))
    return jobs


def _images(given: str, output: Path) -> Iterator[tuple[Path, Path]]:
    """Paths of the images, and their names in the output without suffix."""
    path = Path(given)
    if path.is_dir():
        for file in find_images(path):
            image = path / file.name
            if not image.resolve().is_relative_to(output) or path.resolve().is_relative_to(output):
                yield image, Path(file.name).with_suffix("")
    elif path.exists() or not glob.has_magic(given):
        if not path.exists():
            raise FileNotFoundError(f"There is no image {given}: correct the path.")
        yield path, Path(path.stem)
    else:
        matches = [Path(match) for match in sorted(glob.glob(given, recursive=True))]
        matches = [match for match in matches if match.is_file() and match.suffix.lower() in SUFFIXES]
        if not matches:
            raise FileNotFoundError(f"No image matches {given}: correct the pattern.")
        for match in matches:
            if not match.resolve().is_relative_to(output):
                yield match, Path(match.stem)
