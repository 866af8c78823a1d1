"""What the log says of a prepared folder, when it is prepared and whenever it is opened again."""

import itertools
import os
from collections.abc import Mapping, Sequence
from typing import Any

from absl import logging

from grass_jax.data.statistics import Outlier

NAMED = 100  # files named in the log before "and N more"


def log_notes(notes: Mapping[str, Any]) -> None:
    """Say what a user should know of the folder that a builder's metadata describe (see `cut_files`)."""
    folder = notes["folder"]
    log_skipped(notes["skipped"], folder)
    if barren := notes.get("barren"):
        logging.warning("%d image file(s) of %s give no training tile:%s", len(barren), folder, _named(barren))
    if tiles := notes.get("nodata"):
        logging.info("Left out %d tile(s) of %s, of which fewer than half of the pixels hold data.", tiles, folder)
    if mixed := notes.get("mixed"):
        logging.warning("The images of %s are of several kinds: %s.", folder, "; ".join(mixed))
    if unread := notes.get("unread"):
        logging.info("Bands of the images of %s that are not read: %d.", folder, unread)
    if untagged := notes.get("untagged"):
        _log_untagged(untagged, folder)


def log_skipped(skipped: Sequence[Sequence[str]], folder: str | os.PathLike) -> None:
    """One warning that counts the skipped files and names the first ones with their reasons."""
    if skipped:
        logging.warning("Skipped %d image file(s) of %s:%s", len(skipped), folder, _named(skipped))


def _log_untagged(untagged: Sequence[Sequence[Any]], folder: str | os.PathLike) -> None:
    """Name the bands that seem to hold nodata without a tag, and how to tag it."""
    bands = "".join(
        f"\n  band {outlier.number} is {outlier.value:.9g} in {outlier.share:.0%} of its pixels and "
        f"{outlier.low:.9g} to {outlier.high:.9g} in the others"
        for outlier in itertools.starmap(Outlier, untagged)
    )
    logging.warning(
        "The images of %s seem to hold a nodata value that is not tagged as one and counts as an image; if it is "
        "nodata, tag it with gdal_edit.py -a_nodata %.9g FILE:%s",
        *(folder, Outlier(*untagged[0]).value, bands),
    )


def _named(files: Sequence[Sequence[str]]) -> str:
    more = f"\n  and {len(files) - NAMED} more" if len(files) > NAMED else ""
    return "".join(f"\n  {name} ({why})" for name, why in files[:NAMED]) + more
