"""Which log messages a person sees, and how."""

from logging import WARNING, Formatter
from pathlib import Path

from absl import logging

PACKAGE = Path(__file__).parents[1]


def show_plain_messages() -> None:
    """Shows this project's messages as they are, and of the libraries only warnings (Orbax is verbose)."""
    logging.set_verbosity(logging.INFO)
    handler = logging.get_absl_handler().python_handler
    handler.addFilter(lambda record: record.levelno >= WARNING or Path(record.pathname).is_relative_to(PACKAGE))
    handler.setFormatter(Formatter("%(message)s"))
