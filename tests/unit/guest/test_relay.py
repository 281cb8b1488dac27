"""The relay of a guest takes connections until its socket is closed."""

from __future__ import annotations

import errno
from typing import cast

from lamina.guest import relay as module
from lamina.serve.cache.channel import Channel


class Listening:
    """A socket that fails once, takes one connection, and is closed then."""

    def __init__(self) -> None:
        self._answers: list[object] = [OSError(errno.EMFILE, "no descriptors"), "connection"]

    def accept(self) -> tuple[object, None]:
        found = self._answers.pop(0) if self._answers else OSError(errno.EBADF, "closed")
        if isinstance(found, OSError):
            raise found
        return found, None

    def fileno(self) -> int:
        return 3 if self._answers else -1


class Taken(list[object]):
    """What was carried."""

    connect = list.append


def test_a_connection_that_cannot_be_taken_is_not_the_last_one() -> None:
    taken = Taken()
    module._take(cast("module.socket.socket", Listening()), cast("Channel", taken))
    assert taken == ["connection"]
