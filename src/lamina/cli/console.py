"""What a person reads: lines on standard error, as text or JSON.  Standard output belongs to data.

``set_up`` is called once, before the verb runs; log records of the library's loggers go the same
way.
"""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from logging import LogRecord

    from lamina.errors import Error


class _Style:
    """How this process talks; one for the process, as standard error is."""

    quiet = False
    form = "text"


def set_up(*, verbosity: int = 0, quiet: bool = False, form: str = "text") -> None:
    """Choose form and amount, and send log records of ``lamina.*`` to standard error."""
    import logging

    _Style.quiet, _Style.form = quiet, form

    class StoryHandler(logging.Handler):
        """Writes records as lines of the story."""

        def emit(self, record: LogRecord) -> None:
            """Write one record."""
            _write(
                record.levelname.lower(),
                record.getMessage(),
                {"logger": record.name},
                record.created,
            )

    logger = logging.getLogger("lamina")
    chatty = logging.DEBUG if verbosity > 1 else logging.INFO if verbosity else logging.WARNING
    logger.setLevel(logging.ERROR if quiet else chatty)
    logger.handlers = [StoryHandler()]
    logger.propagate = False


def is_quiet() -> bool:
    """Tell whether only errors are wanted."""
    return _Style.quiet


def is_plain() -> bool:
    """Tell whether lines must stay lines: JSON, or no terminal."""
    return _Style.form == "json" or not sys.stderr.isatty()


def info(message: str, **fields: Any) -> None:
    """Say one line; fields appear in the JSON form only.  Silent with ``--quiet``."""
    if not _Style.quiet:
        _write("info", message, fields)


def warning(message: str) -> None:
    """Say one line that deserves attention.  Silent with ``--quiet``."""
    if not _Style.quiet:
        _write("warning", message, {})


def report_error(error: Error) -> None:
    """Say what went wrong and, on a second line, what to do."""
    if _Style.form == "json":
        _write("error", str(error), {"kind": type(error).__name__, "hint": error.hint})
        return
    _write("error", str(error), {})
    if error.hint:
        _write_line(f"hint: {_shown(error.hint)}")


def _write(
    level: str, message: str, fields: dict[str, Any], created_s: float | None = None
) -> None:
    if _Style.form == "json":
        moment = time.time() if created_s is None else created_s
        line = json.dumps({"time": round(moment, 3), "level": level, "message": message, **fields})
    else:
        mark = "" if level in ("info", "error") else f"{level}: "
        line = f"lamina: {mark}{_shown(message)}"
    _write_line(line)


def _write_line(line: str) -> None:
    try:
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()
    except BrokenPipeError:
        raise
    except OSError:
        # A log that is full must not end the work that it tells of.
        pass


def _shown(message: str) -> str:
    """Lines for a terminal: names in them come from images, registries and the command line."""
    if message.isprintable():
        return message
    from lamina.cli.output import shown_text

    return "\n".join(map(shown_text, message.split("\n")))
