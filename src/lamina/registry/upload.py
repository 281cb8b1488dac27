"""Push one blob: in one request if it is small, else in chunks that go on where the registry has
got to, or in one request after all where a registry takes no chunks.

The registry verifies the digest when an upload is finished; the source is hashed here too, and an
upload of wrong bytes is cancelled before that.  A chunk is in memory until it is stored, so that a
source need not be seekable; only a registry that forgets an upload or takes no chunks makes a
seekable source start over.  Source: OCI distribution specification 1.1, "Pushing blobs".
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO, Final
from urllib.parse import quote

from lamina.errors import (
    AuthError,
    Error,
    FetchError,
    IntegrityError,
    NotFoundError,
    UnsupportedError,
)
from lamina.http.http1 import Body
from lamina.http.transient import TransientError
from lamina.http.url import Origin, Url, parse_url
from lamina.oci.manifest import Descriptor
from lamina.oci.reference import is_digest
from lamina.registry.push_source import PushSource, PushStream
from lamina.registry.repository import Progress
from lamina.registry.session import SUCCESS, Answer, Call, Session

SMALL_BYTES: Final = 1 << 20
_MIN_CHUNK_BYTES: Final = 64 << 10
_MAX_LEAST_BYTES: Final = 32 << 20
_MAX_RESTARTS: Final = 2
_STORED: Final = re.compile(r"(?:bytes=)?0-(\d{1,18})")
_CHUNK_REFUSED: Final = (413, 416)


class _UploadLostError(FetchError):
    """The registry has forgotten the upload, or bytes of it that it had."""


class _NoChunksError(_UploadLostError):
    """The registry takes no upload in chunks, or none of a size that we can send."""


class _ChunkRefusedError(TransientError):
    """The registry refuses a chunk of a size that it has taken before."""


@dataclass(slots=True)
class Habits:
    """What pushes to a repository have shown of it.  Threads share it."""

    chunk_bytes: int | None = None
    """Larger chunks were refused."""
    whole: bool = False
    """Chunks are of no use, blobs go in one request."""


class Upload:
    """The push of one blob; used by one thread."""

    def __init__(
        self,
        session: Session,
        descriptor: Descriptor,
        habits: Habits,
        progress: Progress | None = None,
    ) -> None:
        self._session = session
        self._descriptor = descriptor
        self._habits = habits
        self._progress = progress
        self._scope = session.scope("pull,push")
        self._moved = 0
        self._taken_bytes = 0
        self._least_bytes = 0
        self._location = Url(Origin("http", "", 80), "")

    def mount(self, repository: str) -> bool:
        """Let the registry take the blob from another repository; False if it does not, for
        whatever reason: pushing is still possible, and has its own errors.
        """
        query = f"mount={quote(self._descriptor.digest)}&from={quote(repository, safe='')}"
        scope = f"{self._scope} {self._session.scope('pull', repository)}"
        url = self._session.url(f"blobs/uploads/?{query}")
        with contextlib.suppress(Error):
            answer = self._session.fetch("POST", url, Call(scope, SUCCESS, body=b""))
            if answer.status == 201:
                self._check_name(answer)
                return True
            self._cancel(_location(answer))
        return False

    def run(self, source: BinaryIO) -> None:
        """Push; IntegrityError, with nothing stored, if the source is not what was promised."""
        if self._descriptor.size <= SMALL_BYTES:
            data = PushSource(source, self._descriptor).read(SMALL_BYTES)
            self._push_whole(lambda: data, self._session.deadline(len(data)))
            self._report(len(data))
            return
        start = source.tell() if source.seekable() else None
        for restart in range(_MAX_RESTARTS + 1):
            try:
                if self._habits.whole:
                    self._push_stream(source, start)
                else:
                    self._push_chunks(PushSource(source, self._descriptor))
                return
            except _UploadLostError as error:
                self._habits.whole |= isinstance(error, _NoChunksError)
                if start is None or restart == _MAX_RESTARTS:
                    raise
                self._start_over(source, start)

    def _push_stream(self, source: BinaryIO, start: int | None) -> None:
        """Push the whole blob by one request, which has to begin anew if it fails."""
        used = False

        def body() -> Body:
            nonlocal used
            if used and start is None:
                raise FetchError(
                    f"{self._session.reference} takes no chunks, and what is pushed comes only once"
                )
            if used and start is not None:
                self._start_over(source, start)
            used = True
            return PushStream(PushSource(source, self._descriptor), self._report)

        self._push_whole(body, math.inf)

    def _push_whole(self, body: Callable[[], Body], deadline: float) -> None:
        tried = False

        def attempt() -> None:
            nonlocal tried
            # The answer to an earlier attempt may have been lost.
            if tried and self._is_there():
                return
            tried = True
            # An upload that broke off may have some of the bytes, so each attempt is a new one.
            location = self._begin()
            try:
                limit = self._session.deadline(SMALL_BYTES)
                self._finish(location, body(), min(deadline, limit))
            except TransientError:
                raise
            except BaseException:
                self._cancel(location)
                raise

        self._session.retry(attempt, deadline)

    def _push_chunks(self, source: PushSource) -> None:
        self._location = self._begin()
        try:
            self._send_all(source)
            self._finish_chunks()
        except BaseException:
            self._cancel(self._location)
            raise

    def _send_all(self, source: PushSource) -> None:
        least_bytes = self._least_bytes
        if least_bytes > _MAX_LEAST_BYTES:
            raise _NoChunksError(f"{self._session.reference} wants chunks of {least_bytes} bytes")
        wanted_bytes = max(self._session.options.push_chunk_bytes, _MIN_CHUNK_BYTES, least_bytes)
        offset = 0
        while source.left_bytes:
            size = min(wanted_bytes, self._habits.chunk_bytes or wanted_bytes)
            # The last one would be too small.
            if source.left_bytes < size + least_bytes:
                size = source.left_bytes
            chunk = source.read(size)
            self._send_chunk(offset, chunk)
            offset += len(chunk)

    def _begin(self) -> Url:
        url = self._session.url("blobs/uploads/")
        answer = self._session.fetch("POST", url, Call(self._scope, SUCCESS, body=b""))
        least = answer.headers.get("oci-chunk-min-length", "")
        decimal = least.isascii() and least.isdecimal()
        self._least_bytes = int(least[:18]) if decimal else 0
        return _location(answer)

    def _send_chunk(self, offset: int, chunk: bytes) -> None:
        """Store a chunk at its offset; after a failure go on where the registry says it is."""
        deadline = self._session.deadline(len(chunk))
        end = offset + len(chunk)
        position = offset
        sure = True

        def attempt() -> None:
            nonlocal position, sure
            if not sure:
                stored = self._ask_stored(deadline)
                if not offset <= stored <= end:
                    raise _UploadLostError(f"{self._session.reference} lost bytes of an upload")
                self._report(stored - position)
                position = stored
            sure = False
            while position < end:
                first = position - offset
                size = self._habits.chunk_bytes or len(chunk)
                stored = self._patch(position, chunk[first : first + size], deadline)
                self._report(stored - position)
                position = stored
            sure = True

        try:
            self._session.retry(attempt, deadline)
        except _ChunkRefusedError as error:
            raise _NoChunksError(str(error), hint=error.hint) from error

    def _patch(self, position: int, data: bytes, deadline: float) -> int:
        """Append bytes to the upload; how many bytes it has then, *position* if smaller chunks
        are to be tried.
        """
        end = position + len(data)
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Range": f"{position}-{end - 1}",
        }
        call = Call(self._scope, (*SUCCESS, *_CHUNK_REFUSED), headers, data)
        answer = self._ask("PATCH", call, deadline, _NoChunksError)
        if answer.status in _CHUNK_REFUSED:
            self._shrink(position, len(data), answer)
            return position
        stored = _stored_bytes(answer, end)
        if not position < stored <= end:
            raise _NoChunksError(f"{self._session.reference} did not store what was sent")
        self._taken_bytes = max(self._taken_bytes, stored - position)
        return stored

    def _shrink(self, position: int, size_bytes: int, answer: Answer) -> None:
        """Find out what a refusal of a chunk means, and take smaller ones if it is too large."""
        if _stored_bytes(answer, position) != position:
            raise TransientError(f"{answer.refusal}: it is at another offset of the upload")
        if size_bytes <= self._taken_bytes:
            raise _ChunkRefusedError(answer.refusal)
        half = size_bytes // 2
        if half < max(_MIN_CHUNK_BYTES, self._least_bytes):
            raise _NoChunksError(answer.refusal)
        self._habits.chunk_bytes = min(half, self._habits.chunk_bytes or half)

    def _ask_stored(self, deadline: float) -> int:
        answer = self._ask("GET", Call(self._scope, SUCCESS), deadline, _UploadLostError)
        return _stored_bytes(answer, 0)

    def _ask(
        self, method: str, call: Call, deadline: float, otherwise: type[_UploadLostError]
    ) -> Answer:
        """Send one request to the upload, which may move it; *otherwise* is what an answer
        means that is neither expected nor passing.
        """
        try:
            answer = self._session.once(method, self._location, call, deadline)
        except NotFoundError as error:
            raise _UploadLostError(str(error)) from error
        except (AuthError, TransientError):
            raise
        except FetchError as error:
            raise otherwise(str(error), hint=error.hint) from error
        # Some registries name the place only once.
        if "location" in answer.headers:
            self._location = _location(answer)
        return answer

    def _finish_chunks(self) -> None:
        deadline = self._session.deadline()
        try:
            self._session.retry(lambda: self._finish(self._location, b"", deadline), deadline)
        except NotFoundError as error:
            # The answer to an earlier attempt may have been lost, and the upload be finished.
            if not self._is_there():
                raise _UploadLostError(str(error)) from error

    def _finish(self, location: Url, body: Body, deadline: float) -> None:
        joint = "&" if "?" in location.target else "?"
        digest = quote(self._descriptor.digest, safe="")
        url = Url(location.origin, f"{location.target}{joint}digest={digest}")
        headers = {"Content-Type": "application/octet-stream"}
        call = Call(self._scope, SUCCESS, headers, body)
        self._check_name(self._session.once("PUT", url, call, deadline))

    def _check_name(self, answer: Answer) -> None:
        """Raise an error if the registry has stored something else, or under another name only.

        Those that know sha256 only differ with a blob that is named by sha512: some say its sha256
        and have it by both, some say its sha512 and do not have it by that.
        """
        digest = self._descriptor.digest
        stored = answer.headers.get("docker-content-digest", "")
        stored = stored if is_digest(stored) else digest
        if stored == digest and digest.startswith("sha256:"):
            return
        if stored != digest and stored.partition(":")[0] == digest.partition(":")[0]:
            raise IntegrityError(f"{self._session.reference} stored {digest} as {stored}")
        if not self._is_there():
            raise UnsupportedError(
                f"{self._session.reference} took {digest}, and does not have it by that name",
                hint="the registry knows sha256 only",
            )

    def _is_there(self) -> bool:
        url = self._session.url(f"blobs/{self._descriptor.digest}")
        try:
            self._session.fetch("HEAD", url, Call(self._scope, SUCCESS))
        except NotFoundError:
            return False
        return True

    def _cancel(self, location: Url) -> None:
        call = Call(self._scope, SUCCESS)
        with contextlib.suppress(Error):
            self._session.once("DELETE", location, call, self._session.deadline())

    def _start_over(self, source: BinaryIO, start: int) -> None:
        source.seek(start)
        self._report(-self._moved)

    def _report(self, size_bytes: int) -> None:
        self._moved += size_bytes
        if self._progress and size_bytes:
            self._progress(size_bytes)


def _location(answer: Answer) -> Url:
    location = answer.headers.get("location")
    if not location:
        raise FetchError(f"{answer.url.without_query} names no place for the upload")
    return parse_url(location, answer.url)


def _stored_bytes(answer: Answer, default: int) -> int:
    """Return how many bytes of an upload a registry has; ``0-0`` is how they say none."""
    found = _STORED.fullmatch(answer.headers.get("range", ""))
    if found is None:
        return default
    last = int(found[1])
    return last + 1 if last else 0
