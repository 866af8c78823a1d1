"""Prepare a data set once, however many processes ask for it at the same time."""

import contextlib
import io
import logging as python_logging
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock
import tensorflow_datasets as tfds
from absl import logging


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
    """

    def make() -> tfds.core.GeneratorBasedBuilder:
        return builder_class(config=config, data_dir=data_dir, file_format="array_record")

    with _quiet():
        return _prepare(make)


def _prepare(make: Callable[[], tfds.core.GeneratorBasedBuilder]) -> tuple[tfds.core.DatasetBuilder, bool]:
    builder = make()
    if builder.is_prepared():
        return builder, False
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


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep TFDS's notes on its insides, and GDAL's, which a skipped file's reason repeats, out of the log."""

    def keep(record: python_logging.LogRecord) -> bool:
        return record.levelno >= python_logging.ERROR or "tensorflow_datasets" not in record.pathname

    logger = logging.get_absl_logger()
    logger.addFilter(keep)
    gdal = python_logging.getLogger("rasterio")
    level = gdal.level
    gdal.setLevel(python_logging.CRITICAL)
    try:
        yield
    finally:
        logger.removeFilter(keep)
        gdal.setLevel(level)
