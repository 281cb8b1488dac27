"""Answers to fanotify events: every event gets one, whatever fails.

A reader whose event has no answer waits for ever, and so does everybody behind it once no thread is
left.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from typing import Final

from lamina.errors import Error
from lamina.linux import fanotify

LOG: Final = logging.getLogger("lamina")


def outcome(fill: Callable[[], object]) -> int:
    """Return what a reader hears of ``fill``: 0 if it ended well, else the errno of its error."""
    try:
        fill()
    except Error as error:
        return error.errno
    except Exception:
        # An event without an answer would hang its reader, so even a defect is one.
        LOG.exception("filling a range of a cache file failed")
        return errno.EIO
    return 0


def answer(group: int, number: int, code: int = 0) -> None:
    """Answer event ``number`` with errno ``code``; where the kernel refuses that, with EIO.

    Never raises OSError: who answers has others to serve.
    """
    for attempt in dict.fromkeys((code, errno.EIO)):
        try:
            fanotify.respond(group, number, attempt)
        except FileNotFoundError:
            # Its reader was killed, or a server that is gone has answered it.
            return
        except OSError:
            LOG.exception("the kernel refuses %d as the answer to a reader of a blob", attempt)
        else:
            return
