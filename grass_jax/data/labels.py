"""What the values of a mask mean: classes, and pixels that do not count."""

import colorsys
import dataclasses
import functools
import operator
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np

IGNORE = 255  # the id of pixels that do not count
MAX_CLASSES = 250
UNKNOWN = 254  # never leaves this file

# Twenty colours that stay apart from each other, from the grey of ignored pixels and in print (after Trubetskoy 2017).
PALETTE = (
    *("#E6194B", "#3CB44B", "#FFE119", "#4363D8", "#F58231", "#911EB4", "#42D4F4", "#F032E6", "#BFEF45", "#FABED4"),
    *("#469990", "#DCBEFF", "#9A6324", "#FFFAC8", "#800000", "#AAFFC3", "#808000", "#0000FF", "#000075", "#000000"),
)


class UnknownLabelError(ValueError):
    """A mask holds what the labels do not explain; the message names the file and says what to change."""


@dataclasses.dataclass(frozen=True)
class Labels:
    """The classes of a set of masks, and the ids or colours that stand for them.

    `reduce_zero_label` of other frameworks is `values=(1, 2, ...), ignore=(0,)`.

    Attributes:
        classes: names; class i has the id i in everything that is read with these labels.
        values: for each class the id or the colour ("#RRGGBB") that the files hold for it, or several of them;
            empty for the ids 0, 1, ...; all of them ids or all of them colours.
        ignore: ids or colours that do not count, whatever `values` says of them; with colours the default id means
            nothing.
        colours: colours of the classes in pictures; empty for the first colour of each class, or a built-in palette.
        background: class of what no polygon covers, where the polygons of a vector file are complete; empty leaves
            that out of account.
    """

    classes: tuple[str, ...]
    values: tuple = ()
    ignore: tuple = (IGNORE,)
    colours: tuple[str, ...] = ()
    background: str = ""

    def __post_init__(self):
        several = tuple(_several(value) for value in self.values)
        for name, value in {
            "classes": tuple(self.classes),  # a config's lists become tuples, which can be hashed
            "values": several,
            "ignore": _several(self.ignore),
            "colours": tuple(_plain(colour) for colour in self.colours),
        }.items():
            object.__setattr__(self, name, value)
        _check(self)

    @property
    def by_colour(self) -> bool:
        """Whether the files hold colours and not ids."""
        return any(isinstance(value, str) for values in self.values for value in values)

    def rgb(self) -> np.ndarray:
        """Colours of the classes in pictures, (k, 3) uint8."""
        colours = self.colours or (tuple(values[0] for values in self.values) if self.by_colour else ())
        codes = [_code(colour) for colour in colours] or default_colours(len(self.classes))
        return np.array([[code >> 16, code >> 8 & 255, code & 255] for code in codes], np.uint8)

    @functools.cached_property
    def known(self) -> dict[int, int]:
        """Class of every id, or of every colour as the number 0xRRGGBB, IGNORE for those that do not count."""
        values = self.values or tuple((i,) for i in range(len(self.classes)))
        table = {_code(value): i for i, several in enumerate(values) for value in several}
        skipped = [value for value in self.ignore if isinstance(value, str) == self.by_colour]
        return table | {_code(value): IGNORE for value in skipped}


def default_colours(count: int) -> list[int]:
    """Distinct colours 0xRRGGBB: the palette, then hues that turn by the golden angle in three strengths."""
    codes = [_code(colour) for colour in PALETTE[:count]]
    for i in range(count - len(codes)):
        rgb = colorsys.hsv_to_rgb(i * 0.618034 % 1, (0.9, 0.5, 0.7)[i % 3], (0.85, 0.95, 0.55)[i % 3])
        codes.append(sum(round(255 * part) << shift for part, shift in zip(rgb, (16, 8, 0), strict=True)))
    return codes


def colour_codes(array: np.ndarray) -> np.ndarray:
    """Colours (..., 3) uint8 as the numbers 0xRRGGBB, int32."""
    wide = array.astype(np.int32)
    return wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]


def look_up(codes: np.ndarray, labels: Labels) -> tuple[np.ndarray, Counter[int]]:
    """Classes of ids or colour codes, and how many pixels hold each of those that the labels do not know.

    Args:
        codes: (h, w) integers.
        labels: what they mean.

    Returns:
        (h, w) uint8, and pixels by unknown code; those pixels have no meaning in the array.
    """
    if codes.dtype in (np.uint8, np.uint16):  # one look at a table for every pixel is the quickest
        decoded = _search(np.arange(np.iinfo(codes.dtype).max + 1), labels)[codes]
    else:
        decoded = _search(codes, labels)
    strange = decoded == UNKNOWN
    if not strange.any():
        return decoded, Counter()
    values, counts = np.unique(codes[strange], return_counts=True)
    return decoded, Counter(dict(zip(values.tolist(), counts.tolist(), strict=True)))


def refuse_unknown(unknown: Counter[int], labels: Labels, name: str) -> None:
    """Raise UnknownLabelError for what `look_up` found, if anything, with the most frequent code."""
    if unknown:
        (code, pixels), *others = unknown.most_common()
        what = f"the colour #{code:06X}" if labels.by_colour else f"the id {code}"
        more = f" and {len(others)} more such" if others else ""
        raise UnknownLabelError(
            f"mask {name} holds {what} ({pixels} pixels){more}, which is neither a class nor ignored: "
            "add it to mask_values, as a value of a class, or to ignore"
        )


def _search(codes: np.ndarray, labels: Labels) -> np.ndarray:
    known = np.array(sorted(labels.known), np.int64)
    classes = np.array([labels.known[code] for code in known.tolist()], np.uint8)
    place = np.minimum(np.searchsorted(known, codes), len(known) - 1)
    return np.where(known[place] == codes, classes[place], np.uint8(UNKNOWN))


def _check(labels: Labels) -> None:
    classes, flat = labels.classes, [value for values in labels.values for value in values]
    colours = [isinstance(value, str) for value in flat]
    if not 1 <= len(classes) <= MAX_CLASSES:
        raise ValueError(f"labels need 1 to {MAX_CLASSES} classes, not {len(classes)}.")
    if len(set(classes)) < len(classes) or not all(isinstance(name, str) and name for name in classes):
        raise ValueError(f"the names of the classes must be different and not empty, not {classes}.")
    for name, given in (("mask_values", labels.values), ("colours", labels.colours)):
        if given and len(given) != len(classes):
            raise ValueError(f"{name} must have one entry for each of the {len(classes)} classes, not {len(given)}.")
    if not all(labels.values):
        raise ValueError("mask_values must name at least one id or colour for each class.")
    if any(colours) and not all(colours):
        raise ValueError(f"mask_values must be all ids or all colours, not {tuple(flat)}.")
    twice = [value for value, count in Counter(flat).items() if count > 1]
    if twice:
        raise ValueError(f"mask_values gives {twice[0]} to two classes: a value belongs to one.")
    strange = [value for value in labels.ignore if isinstance(value, str) != any(colours)]
    if strange and labels.ignore != (IGNORE,):
        raise ValueError(
            f"ignore must hold {'colours' if any(colours) else 'ids'} as mask_values does, not {strange[0]}."
        )
    if any(not isinstance(colour, str) for colour in labels.colours):
        raise ValueError(f'colours must be written "#RRGGBB", not {labels.colours}.')
    if labels.background and labels.background not in classes:
        raise ValueError(f"background must be one of the classes {classes}, not {labels.background!r}.")


def _several(value: Any) -> tuple:
    """One id or colour, or several, as a tuple."""
    several: Iterable = value if isinstance(value, Iterable) and not isinstance(value, str) else (value,)
    return tuple(_plain(one) for one in several)


def _plain(value: Any) -> int | str:
    if isinstance(value, str):
        if not re.fullmatch("#[0-9a-fA-F]{6}", value):
            raise ValueError(f'a colour is written "#RRGGBB", not {value!r}.')
        return value.upper()
    try:
        return operator.index(value)
    except TypeError:
        raise ValueError(f'mask_values, ignore and colours hold ids or colours "#RRGGBB", not {value!r}.') from None


def _code(value: int | str) -> int:
    return int(value[1:], 16) if isinstance(value, str) else value
