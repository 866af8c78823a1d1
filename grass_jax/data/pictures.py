"""Open PNG and JPEG files."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, ImageFile

from grass_jax.data.limits import UnusableImageError, check_picture, file_size, one_line

JPEG_SUFFIXES = frozenset({".jpg", ".jpeg"})


@contextlib.contextmanager
def open_picture(path: Path, formats: tuple[str, ...] = ("PNG", "JPEG")) -> Iterator[ImageFile.ImageFile]:
    """Open a PNG or JPEG without decoding it.

    Args:
        path: the file.
        formats: Pillow's names of the formats to accept; JPEG includes MPO, a JPEG of several pictures.

    Yields:
        the picture as Pillow opens it.

    Raises:
        UnusableImageError: if it is none of the formats, refused by `limits.check_picture`, or has a broken head.
    """
    size = file_size(path)
    with contextlib.ExitStack() as stack:
        try:
            with no_pillow_limit():
                picture = stack.enter_context(Image.open(path, formats=formats))
        except Image.UnidentifiedImageError:
            raise UnusableImageError(f"it is no readable {' or '.join(formats)} file") from None
        except ValueError as error:  # of a chunk before the pixels, such as text that unpacks to megabytes
            raise UnusableImageError(f"it is broken: {one_line(str(error))}") from error
        check_picture(picture, size)
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
