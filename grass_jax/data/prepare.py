"""Prepare a data set once, however many processes ask for it at the same time."""

import contextlib
import errno
import io
import logging as python_logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock
import tensorflow_datasets as tfds
from absl import logging
from tensorflow_datasets.core.constants import DATA_DIR

from grass_jax.data.geotiff import quiet_gdal
from grass_jax.report.atomic import FULL

CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS)
NO_FOLDER = (errno.ENOTDIR, errno.EEXIST)


def prepare(
    builder_class: type[tfds.core.GeneratorBasedBuilder],
    config: tfds.core.BuilderConfig,
    data_dir: str | None = None,
) -> tuple[tfds.core.DatasetBuilder, bool]:
    """A builder whose records are on disk: found there, waited for, or made now.

    The records are written under another name and renamed at the end, so that an interrupted preparation is never
    taken for a finished one.

    Args:
        builder_class: the TFDS builder.
        config: its configuration.
        data_dir: where TFDS keeps its data sets; `TFDS_DATA_DIR` or `~/tensorflow_datasets` where None.

    Returns:
        the builder, and whether this call has prepared it.

    Raises:
        OSError: in one sentence, if `data_dir` is a file, cannot be written to or has no space left. Nothing of the
            records is left then.
    """
    place = Path(data_dir or DATA_DIR).expanduser()

    def make() -> tfds.core.GeneratorBasedBuilder:
        return builder_class(config=config, data_dir=data_dir, file_format="array_record")

    with _quiet():
        try:
            return _prepare(make)
        except Exception as error:  # a full disk is a RuntimeError of array_record
            sentence = _about_disk(error, place)
            if sentence is None:
                raise
            raise OSError(sentence) from error


def _prepare(make: Callable[[], tfds.core.GeneratorBasedBuilder]) -> tuple[tfds.core.DatasetBuilder, bool]:
    builder = make()
    if builder.is_prepared():
        return make(), False  # anew: its notes were read before another process may have written them, a moment ago
    home = Path(builder.data_path).parent
    home.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(home.parent / f".{home.name}.lock")
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(lock.acquire(timeout=0))
        except filelock.Timeout:
            logging.info("Another process is preparing %s; waiting for it.", home)
            stack.enter_context(lock.acquire())
        builder = make()  # what another process wrote meanwhile is read when a builder is made
        if builder.is_prepared():
            return builder, False
        for remains in home.glob("incomplete.*"):  # of a run that was killed: whoever holds the lock is the only writer
            shutil.rmtree(remains, ignore_errors=True)
        started = time.monotonic()
        logging.info("Preparing %s (done once, reused after).", home)
        tfds.disable_progress_bar()  # the builders show one line of their own
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # TFDS announces a download that does not happen
                builder.download_and_prepare()
        finally:
            tfds.enable_progress_bar()
        logging.info("Prepared %s in %.0f s.", home, time.monotonic() - started)
    return builder, True


def _about_disk(error: BaseException | None, place: Path) -> str | None:
    """What a user can do about an error that the folder of the data sets gives rise to; None for another error."""
    while error is not None:
        # The writer of the records tells what went wrong in words alone, and TFDS repeats errors without their number.
        if getattr(error, "errno", None) in FULL or any(os.strerror(number) in str(error) for number in FULL):
            return f"There is no space left in {place}: free some, or set data_dir to a folder on another disk."
        if isinstance(error, OSError) and _concerns(error, place):
            file = next((path for path in (place, *place.parents) if path.is_file()), None)
            if error.errno in NO_FOLDER and file is not None:
                return f"{file} is a file, and data sets are kept in a folder: set data_dir to one."
            if error.errno in CLOSED:
                return (
                    f"{place} cannot be written to ({os.strerror(error.errno)}): change its permissions, or set "
                    "data_dir to another folder."
                )
        error = error.__cause__ or error.__context__
    return None


def _concerns(error: OSError, place: Path) -> bool:
    path = Path(str(error.filename or place))
    return path.is_relative_to(place) or place.is_relative_to(path)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep TFDS's and GDAL's notes on their insides out of the log."""

    def keep(record: python_logging.LogRecord) -> bool:
        return record.levelno >= python_logging.ERROR or "tensorflow_datasets" not in record.pathname

    logger = logging.get_absl_logger()
    logger.addFilter(keep)
    try:
        with quiet_gdal():
            yield
    finally:
        logger.removeFilter(keep)
