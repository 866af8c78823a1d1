"""Which log messages a person sees, and how."""

from logging import WARNING, Formatter, LogRecord
from pathlib import Path

from absl import logging

PACKAGE = Path(__file__).parents[1]


def show_plain_messages() -> None:
    """Shows this project's messages as they are, and of the libraries only warnings."""
    logging.set_verbosity(logging.INFO)
    handler = logging.get_absl_handler().python_handler
    handler.addFilter(_is_for_people)
    handler.setFormatter(Formatter("%(message)s"))


def _is_for_people(record: LogRecord) -> bool:
    """Of Orbax nothing: it prints tracebacks of failed saves, of which this project has said in a sentence already."""
    path = Path(record.pathname)
    return path.is_relative_to(PACKAGE) or (record.levelno >= WARNING and "orbax" not in path.parts)
