"""The library's logger, which the command line takes for itself when a test runs it in process."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from lamina.cli import story


@contextlib.contextmanager
def restored_log() -> Iterator[None]:
    """Leave the logger, and the form of what is told, as they were before the block."""
    logger, style = logging.getLogger("lamina"), story._Style
    before = logger.level, list(logger.handlers), logger.propagate
    talk = style.quiet, style.form
    try:
        yield
    finally:
        logger.setLevel(before[0])
        logger.handlers, logger.propagate = before[1:]
        style.quiet, style.form = talk
