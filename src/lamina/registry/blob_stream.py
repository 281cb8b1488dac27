"""The body of a blob as a stream that goes on where it was when its connection breaks."""

from __future__ import annotations

import io
import math
import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from lamina.errors import FetchError
from lamina.http.http1 import Response
from lamina.http.transient import TransientError
from lamina.http.transport import translated
from lamina.http.url import Url
from lamina.registry.session import CUT_HINT, RangeRefusedError, Session

if TYPE_CHECKING:
    from typing_extensions import Buffer

_CONTENT_RANGE: Final = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(?:(\d{1,18})|\*)")

_PIECE_BYTES: Final = 128 << 10
"""A read that breaks loses so much at most."""

Getter = Callable[[dict[str, str], float], tuple[Response, Url]]
"""Asks for the blob with some headers, until a deadline; the answer is 200 or 206."""


class BlobStream(io.RawIOBase):
    """The bytes of a blob, not verified; a broken connection is replaced by a range request for the
    rest.
    """

    def __init__(self, session: Session, get: Getter, size_bytes: int) -> None:
        self._session = session
        self._get = get
        self._size_bytes = size_bytes
        self._position = 0
        self._ranges = True
        self._skips = 0
        self._response: Response | None = None
        self._url = session.url("")
        self._started = self._deadline = 0.0
        self._pace = session.pace()

    def readable(self) -> bool:
        """Tell that it can be read (:class:`io.RawIOBase`)."""
        return True

    def start(self) -> None:
        """Ask for the blob, with retries."""
        self._deadline = self._session.deadline()
        self._session.retry(self._open, self._deadline)

    def readinto(self, buffer: Buffer, /) -> int:
        """Fill some of the buffer; 0 at the end.  FetchError if the rest cannot be had."""
        view = memoryview(buffer).cast("B")[:_PIECE_BYTES]
        # The reader may take its time between two calls; the registry may not inside of them.
        self._started = time.monotonic()
        with translated(self._url.origin):
            self._pace.check()
        self._deadline = self._started + self._pace.left_s
        got = self._session.retry(lambda: self._read(view), self._deadline)
        self._pace.count(time.monotonic() - self._started, got)
        return got

    def close(self) -> None:
        """Give the connection back; again does nothing."""
        if not self.closed:
            self._drop()
        super().close()

    def _read(self, view: memoryview) -> int:
        if self._response is None:
            if self._position == self._size_bytes:
                return 0
            self._open()
        assert self._response is not None
        try:
            with translated(self._url.origin):
                got = self._response.readinto(view)
        except FetchError:
            self._drop()
            raise
        self._position += got
        return got

    def _open(self) -> None:
        headers: dict[str, str] = {}
        last = self._size_bytes - 1
        if self._position and self._ranges:
            # Some registries know no range without an end.
            headers["Range"] = f"bytes={self._position}-{last}"
        try:
            response, self._url = self._get(headers, self._deadline)
        except RangeRefusedError as error:
            # What comes is verified, so that the whole of it will do as well.
            self._ranges = False
            raise TransientError(str(error), hint=error.hint) from error
        response.wait_until(math.inf)
        self._response = response
        try:
            if response.status == 206:
                check_range(response, self._position, last)
            elif self._position:
                self._skip(response)
        except FetchError:
            self._drop()
            raise

    def _skip(self, response: Response) -> None:
        """Come to the position in a whole answer, which is progress, but not without end."""
        self._skips += 1
        if self._skips > self._session.options.attempts:
            raise FetchError(
                f"{self._url.without_query} breaks off again and again, and ranges are ignored"
            )
        with translated(self._url.origin):
            skip(response, self._position)
        self._started = time.monotonic()

    def _drop(self) -> None:
        response, self._response = self._response, None
        if response is not None:
            response.close()


def check_range(response: Response, first: int, last: int) -> None:
    """FetchError unless a 206 has the bytes that were asked for."""
    text = response.headers.get("content-range", "")
    found = _CONTENT_RANGE.fullmatch(text)
    if found is not None and found[3] is not None and int(found[3]) <= last:
        raise FetchError(
            f"the registry has {found[3]} bytes of a blob of which the bytes {first}-{last} were "
            "asked for",
            hint=CUT_HINT,
        )
    if found is None or (int(found[1]), int(found[2])) != (first, last):
        raise TransientError(f"asked for the bytes {first}-{last} the registry sent {text[:80]!r}")
    length = response.length_bytes
    if length is not None and length != last - first + 1:
        raise TransientError(f"the registry sent {length} bytes as the range {text[:80]!r}")


def skip(response: Response, size_bytes: int) -> None:
    """Read so many bytes and forget them; TransientError if there are fewer."""
    left = size_bytes
    while left:
        skipped = len(response.read(min(left, 1 << 20)))
        if not skipped:
            raise TransientError(f"the registry's answer ends {left} bytes early")
        left -= skipped
