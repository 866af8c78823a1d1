"""Which bands of an image file are read, and as what: of one file by its header, and of most files of a folder."""

import functools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import ImageFile

from grass_jax.bands import DTYPES, DTYPES_IN_WORDS, MAX_BANDS, Bands
from grass_jax.data.geotiff import TIFF_SUFFIXES, alpha_band, colour_table, open_raster, quiet_gdal
from grass_jax.data.pictures import UnusableImageError, is_deep, open_picture

LOOKED_AT = 16  # files that a folder's layout is found from
# What the values of a file are read as. Half floats are here for completeness: GDAL itself reads them as float32.
READ_AS = {name: name for name in DTYPES} | dict.fromkeys(("int8", "int16", "float16", "float64"), "float32")


class Layout(NamedTuple):
    """The bands that are read of a file, in this order.

    Attributes:
        numbers: of the bands in the file, from 1.
        dtype: what they are read as: uint8, uint16 or float32.
        rgb: numbers of the bands that are red, green and blue; empty where that is not known.
    """

    numbers: tuple[int, ...]
    dtype: str
    rgb: tuple[int, ...] = ()

    @classmethod
    def of(cls, bands: Bands) -> "Layout":
        """The layout in which files are read for a network with these bands."""
        return cls(bands.numbers, bands.dtype, bands.rgb)


class OtherBandsError(UnusableImageError):
    """An image file without the bands that are wanted.

    Attributes:
        advice: what to do about it before bands are chosen to train on, which a network that is trained cannot.
    """

    def __init__(self, fact: str, advice: str):
        super().__init__(fact)
        self.advice = advice


RGB_LAYOUT = Layout((1, 2, 3), "uint8", (1, 2, 3))
GREY_LAYOUT = Layout((1,), "uint8")


def layout_of(path: Path) -> Layout:
    """All bands of an image file but an alpha channel, from its header; a file is opened once while it does not change.

    Args:
        path: a PNG, JPEG or TIFF file.

    Returns:
        the layout; palettes count as their colours, bits as grey levels 0 and 255, and int8, int16, float16 and float64
        as float32. `rgb` is what the file itself says.

    Raises:
        UnusableImageError: if the file holds values of another kind or is no image; other errors where it is broken.
    """
    state = path.stat()
    return _layout_of(path, state.st_size, state.st_mtime_ns)


@functools.lru_cache(maxsize=1 << 14)
def _layout_of(path: Path, size: int, mtime: int) -> Layout:
    del size, mtime
    if path.suffix.lower() in TIFF_SUFFIXES:
        with open_raster(path) as raster:
            return raster_layout(raster)
    with open_picture(path) as picture:
        if not is_deep(picture):
            return picture_layout(picture)
    with open_raster(path, "PNG") as raster:
        return raster_layout(raster)


def raster_layout(raster: Any) -> Layout:
    """`layout_of` an open rasterio data set."""
    from rasterio.enums import ColorInterp

    names = list(raster.colorinterp)
    table = colour_table(raster)
    if table is not None:
        # GDAL gives a file of bits a palette of black and white.
        bits = raster.tags(1, ns="IMAGE_STRUCTURE").get("NBITS") == "1" and (table[:2] == table[:2, :1]).all()
        return GREY_LAYOUT if bits else RGB_LAYOUT
    alpha = alpha_band(raster) if raster.count > 1 else 0
    numbers = tuple(number for number in range(1, raster.count + 1) if number != alpha)
    kinds = sorted({raster.dtypes[number - 1] for number in numbers})
    if len(kinds) != 1 or kinds[0] not in READ_AS:
        raise UnusableImageError(f"it holds {' and '.join(kinds)}: convert it to {DTYPES_IN_WORDS}")
    colours = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
    named = set(colours) <= set(names)
    rgb = tuple(names.index(colour) + 1 for colour in colours) if named else ()
    return Layout(numbers, READ_AS[kinds[0]], rgb)


def picture_layout(picture: ImageFile.ImageFile) -> Layout:
    """`layout_of` a PNG or JPEG of 8 bits or fewer, as Pillow opens it."""
    return GREY_LAYOUT if picture.mode in ("1", "L", "LA") else RGB_LAYOUT


def read_bands(stored: Layout, wanted: Layout) -> list[int]:
    """The bands to read of a file so that it has a layout.

    Args:
        stored: the file's own layout.
        wanted: the layout to read it in.

    Returns:
        numbers of bands, one for each that is wanted; grey three times where 8-bit red, green and blue are wanted.

    Raises:
        OtherBandsError: if the file lacks a band or holds values of another kind.
    """
    if wanted[:2] == RGB_LAYOUT[:2] and (len(stored.numbers), stored.dtype) == (1, "uint8"):
        return list(stored.numbers) * 3
    if stored.dtype == wanted.dtype and set(wanted.numbers) <= set(stored.numbers):
        return list(wanted.numbers)
    count = len(wanted.numbers)
    first = wanted.numbers == tuple(range(1, count + 1))
    asked = f"{count} of {wanted.dtype}" if first else f"{_listed(wanted.numbers)} of {wanted.dtype}"
    if stored.dtype != wanted.dtype:
        advice = f"convert it to {'8 bits' if wanted.dtype == 'uint8' else wanted.dtype}"
    else:
        shared = tuple(number for number in wanted.numbers if number in stored.numbers) or stored.numbers
        advice = f"choose config.bands.numbers that all images have, such as {shared}"
    bands = count_bands(stored)
    verb = "is" if count == 1 else "are"
    raise OtherBandsError(f"it has {bands} of {stored.dtype} and {asked} {verb} wanted", advice)


def count_bands(layout: Layout) -> str:
    """The number of bands, in words."""
    count = len(layout.numbers)
    return "1 band" if count == 1 else f"{count} bands"


def check_colours(stored: Layout, wanted: Layout) -> None:
    """Make sure that a file means the same bands by red, green and blue as most files of its folder.

    Args:
        stored: the file's own layout.
        wanted: the layout to read it in, see `common_layout`.

    Raises:
        UnusableImageError: if it names others.
    """
    if stored.rgb and wanted.rgb and stored.rgb != wanted.rgb:
        raise UnusableImageError(
            f"its red, green and blue are {_listed(stored.rgb)} and those of most images {_listed(wanted.rgb)}: make a "
            "data set of its own of such images, or correct their tags"
        )


def _listed(numbers: Sequence[int]) -> str:
    """Bands by their numbers, in words."""
    return f"band{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))}"


def common_layout(paths: Sequence[Path], numbers: Sequence[int] = ()) -> Layout:
    """The layout in which a folder's images are read: that of most of them.

    Args:
        paths: image files, of which up to `LOOKED_AT` that lie evenly in the list are looked at.
        numbers: bands to read, from 1; all where empty.

    Returns:
        the layout of most of the files that can be read, of the earlier one where several are as frequent; 8-bit colour
        where grey and coloured 8-bit images are mixed, or no file can be read. Where bands of integers are not named
        red, green and blue, the first three of three or four are taken for these.

    Raises:
        ValueError: in one sentence, for bands that no file has, or more of them than a network takes.
    """
    numbers = tuple(numbers)
    if len(numbers) > MAX_BANDS or len(set(numbers)) < len(numbers) or (numbers and min(numbers) < 1):
        raise ValueError(f"config.bands.numbers must be 1 to {MAX_BANDS} different bands from 1, not {numbers}.")
    step = max(1, len(paths) / LOOKED_AT)
    looked_at = [paths[int(i * step)] for i in range(min(len(paths), LOOKED_AT))]
    with quiet_gdal():
        found = list(filter(None, map(_readable, looked_at)))
        found = found or [next(filter(None, map(_readable, paths)), RGB_LAYOUT)]
    found = [_with_colours(layout) for layout in found]
    if numbers:
        usable = [chosen for chosen in (_choose(layout, numbers) for layout in found) if chosen]
        if not usable:
            raise ValueError(
                f"No image that was looked at has all of the bands {numbers}: choose config.bands.numbers of "
                f"{_most(found).numbers}."
            )
        return _most(usable)
    most = _most(found)
    if len(most.numbers) > MAX_BANDS:
        raise ValueError(
            f"The images have {len(most.numbers)} bands, and at most {MAX_BANDS} can be read: choose them with "
            "config.bands.numbers."
        )
    if most == GREY_LAYOUT and any(layout.dtype == "uint8" and len(layout.numbers) >= 3 for layout in found):
        return RGB_LAYOUT  # nothing is lost
    return most


def is_choice(layout: Layout, paths: Sequence[Path]) -> bool:
    """Whether bands had to be chosen for a layout: without numbers, `common_layout` of the files is another one."""
    try:
        return layout != common_layout(paths)
    except ValueError:  # more bands than a network takes
        return True


def _readable(path: Path) -> Layout | None:
    """The layout of a file; None where it cannot be read, the reason for which is given when it is opened."""
    try:
        return layout_of(path)
    except MemoryError:
        raise
    except Exception:  # decoders answer a broken file with anything
        return None


def _with_colours(layout: Layout) -> Layout:
    """A layout in which three or four bands of integers that are not named begin with red, green and blue."""
    few = layout.numbers[:3] == (1, 2, 3) and len(layout.numbers) <= 4
    return layout._replace(rgb=(1, 2, 3)) if few and layout.dtype != "float32" and not layout.rgb else layout


def _choose(stored: Layout, numbers: tuple[int, ...]) -> Layout | None:
    """The layout of some bands of a file; None where it lacks one."""
    rgb = stored.rgb if set(stored.rgb) <= set(numbers) else ()
    wanted = Layout(numbers, stored.dtype, rgb)
    try:
        read = read_bands(stored, wanted)
    except UnusableImageError:
        return None
    return wanted if tuple(read) == numbers else RGB_LAYOUT


def _most(layouts: Sequence[Layout]) -> Layout:
    """The most frequent layout, the first where several are; which bands are colours is decided after the rest."""
    numbers, dtype = Counter((layout.numbers, layout.dtype) for layout in layouts).most_common(1)[0][0]
    alike = [layout.rgb for layout in layouts if (layout.numbers, layout.dtype) == (numbers, dtype)]
    return Layout(numbers, dtype, Counter(alike).most_common(1)[0][0])
