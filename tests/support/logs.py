"""The library's logger, which the command line takes for itself when a test runs it in process."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from lamina.cli import console

_LOGGER, _STYLE = logging.getLogger("lamina"), console._Style
_BEFORE = _LOGGER.level, list(_LOGGER.handlers), _LOGGER.propagate, _STYLE.quiet, _STYLE.form
"""As it is before any test, and before what is set up for several of them."""


def restore_log() -> None:
    """Make the logger, and the form of what is told, as they were when this was imported."""
    level, handlers, _LOGGER.propagate, _STYLE.quiet, _STYLE.form = _BEFORE
    _LOGGER.setLevel(level)
    _LOGGER.handlers = list(handlers)


@contextlib.contextmanager
def restored_log() -> Iterator[None]:
    """Have the logger so at the beginning of the block, and again after it."""
    restore_log()
    try:
        yield
    finally:
        restore_log()
