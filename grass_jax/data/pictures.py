"""Open PNG and JPEG files."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, ImageFile

JPEG_SUFFIXES = frozenset({".jpg", ".jpeg"})
# PNG and JPEG are decoded whole: 4 GB of memory at this size, and twice that with 16 bits a channel; GeoTIFFs are not.
MAX_PIXELS = 1_000_000_000


class UnusableImageError(Exception):
    """An image file that cannot be used; the message is the reason."""


@contextlib.contextmanager
def open_picture(path: Path, formats: tuple[str, ...] = ("PNG", "JPEG")) -> Iterator[ImageFile.ImageFile]:
    """Open a PNG or JPEG up to `MAX_PIXELS` without decoding it.

    Args:
        path: the file.
        formats: Pillow's names of the formats to accept; JPEG includes MPO, a JPEG of several pictures.

    Yields:
        the picture as Pillow opens it.

    Raises:
        UnusableImageError: if it is none of the formats or above `MAX_PIXELS`.
    """
    with contextlib.ExitStack() as stack:
        try:
            with no_pillow_limit():
                picture = stack.enter_context(Image.open(path, formats=formats))
        except Image.UnidentifiedImageError:
            raise UnusableImageError(f"it is no readable {' or '.join(formats)} file") from None
        if picture.width * picture.height > MAX_PIXELS:
            raise UnusableImageError(
                f"{picture.width}x{picture.height} pixels are above the limit of {MAX_PIXELS} for PNG and JPEG: "
                "convert it to a GeoTIFF"
            )
        yield picture


def is_deep(picture: ImageFile.ImageFile) -> bool:
    """Whether a picture that is not decoded yet has 16 bits a channel, of which Pillow keeps 8 where it has colours."""
    stored = " ".join(str(tile[3]) for tile in picture.tile)  # Pillow's names of the samples, such as "RGB;16B"
    return picture.mode.startswith(("I", "F")) or "16" in stored


@contextlib.contextmanager
def no_pillow_limit() -> Iterator[None]:
    """Lift Pillow's own limit, which is below a legitimate scene of 20000x20000."""
    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit
