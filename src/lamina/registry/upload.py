"""Push one blob: in one request if it is small, else in chunks that go on where the registry has
got to.

The registry verifies the digest when an upload is finished; the source is hashed here too, and an
upload of wrong bytes is cancelled before that.  A chunk is in memory until it is stored, so that a
source need not be seekable; only a registry that forgets an upload makes a seekable source start
over. Source: OCI distribution specification 1.1, "Pushing blobs".
"""

from __future__ import annotations

import contextlib
import re
from typing import BinaryIO, Final
from urllib.parse import quote

from lamina.errors import AuthError, Error, FetchError, IntegrityError, NotFoundError
from lamina.registry.manifest import Descriptor
from lamina.registry.repository import Progress
from lamina.registry.session import Answer, Call, Session
from lamina.registry.transport import TransientError
from lamina.registry.url import Origin, Url, parse_url
from lamina.registry.verify import check_bytes, new_hash

SMALL_BYTES: Final = 1 << 20
_MIN_CHUNK_BYTES: Final = 64 << 10
_MAX_RESTARTS: Final = 2
_STORED: Final = re.compile(r"(?:bytes=)?0-(\d{1,18})")


class _UploadLostError(FetchError):
    """The registry has forgotten the upload, or bytes of it that it had."""


class Upload:
    """The push of one blob; used by one thread."""

    def __init__(
        self, session: Session, descriptor: Descriptor, progress: Progress | None = None
    ) -> None:
        self._session = session
        self._descriptor = descriptor
        self._progress = progress
        self._scope = session.scope("pull,push")
        self._moved = 0
        self._location = Url(Origin("http", "", 80), "")

    def mount(self, repository: str) -> bool:
        """Let the registry take the blob from another repository; False if it wants bytes."""
        query = f"mount={quote(self._descriptor.digest)}&from={quote(repository, safe='')}"
        scope = f"{self._scope} {self._session.scope('pull', repository)}"
        url = self._session.url(f"blobs/uploads/?{query}")
        try:
            answer = self._session.fetch("POST", url, Call(scope, (201, 202), body=b""))
        except (NotFoundError, AuthError):
            # Without the right to pull from there, pushing is still possible.
            return False
        if answer.status == 202:
            self._cancel(_location(answer))
        return answer.status == 201

    def run(self, source: BinaryIO) -> None:
        """Push; IntegrityError, with nothing stored, if the source is not what was promised."""
        if self._descriptor.size <= SMALL_BYTES:
            self._push_whole(source)
            return
        start = source.tell() if source.seekable() else None
        for restart in range(_MAX_RESTARTS + 1):
            try:
                self._push_chunks(source)
                return
            except _UploadLostError:
                if start is None or restart == _MAX_RESTARTS:
                    raise
                source.seek(start)
                self._report(-self._moved)

    def _push_whole(self, source: BinaryIO) -> None:
        data = _read_exactly(source, self._descriptor.size + 1)
        check_bytes(data, self._descriptor, "the source of the push")
        deadline = self._session.deadline(len(data))

        def attempt() -> None:
            # An upload that broke off may have some of the bytes, so each attempt is a new one.
            self._finish(self._begin(), data, deadline)

        self._session.retry(attempt, deadline)
        self._report(len(data))

    def _push_chunks(self, source: BinaryIO) -> None:
        self._location = self._begin()
        try:
            self._send_all(source)
            self._finish_chunks()
        except BaseException:
            self._cancel(self._location)
            raise

    def _send_all(self, source: BinaryIO) -> None:
        chunk_bytes = max(self._session.options.push_chunk_bytes, _MIN_CHUNK_BYTES)
        hasher = new_hash(self._descriptor.digest)
        size = self._descriptor.size
        offset = 0
        while chunk := _read_exactly(source, min(chunk_bytes, size + 1 - offset)):
            if offset + len(chunk) > size:
                break
            hasher.update(chunk)
            self._send_chunk(offset, chunk)
            offset += len(chunk)
        algorithm, _, wanted = self._descriptor.digest.partition(":")
        if offset < size or chunk or hasher.hexdigest() != wanted:
            raise IntegrityError(
                f"the source of the push of {self._descriptor.digest} is not it: "
                f"{offset + len(chunk)} bytes of {size}, {algorithm}:{hasher.hexdigest()}"
            )

    def _begin(self) -> Url:
        url = self._session.url("blobs/uploads/")
        return _location(self._session.fetch("POST", url, Call(self._scope, (202,), body=b"")))

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
                stored = self._patch(position, chunk[position - offset :], deadline)
                self._report(stored - position)
                position = stored
            sure = True

        self._session.retry(attempt, deadline)

    def _patch(self, position: int, data: bytes, deadline: float) -> int:
        """Append bytes to the upload; how many bytes it has then."""
        end = position + len(data)
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Range": f"{position}-{end - 1}",
        }
        call = Call(self._scope, (202, 416), headers, data)
        try:
            answer = self._session.once("PATCH", self._location, call, deadline)
        except NotFoundError as error:
            raise _UploadLostError(str(error)) from error
        if answer.status == 416:
            raise TransientError(f"{self._session.reference} is at another offset of the upload")
        stored = _stored_bytes(answer, end)
        if not position < stored <= end:
            raise TransientError(f"{self._session.reference} did not store what was sent")
        self._location = _location(answer)
        return stored

    def _ask_stored(self, deadline: float) -> int:
        call = Call(self._scope, (200, 202, 204))
        try:
            answer = self._session.once("GET", self._location, call, deadline)
        except NotFoundError as error:
            raise _UploadLostError(str(error)) from error
        if "location" in answer.headers:
            self._location = _location(answer)
        return _stored_bytes(answer, 0)

    def _finish_chunks(self) -> None:
        deadline = self._session.deadline()
        try:
            self._session.retry(lambda: self._finish(self._location, b"", deadline), deadline)
        except NotFoundError as error:
            # The answer to an earlier attempt may have been lost, and the upload be finished.
            url = self._session.url(f"blobs/{self._descriptor.digest}")
            try:
                self._session.fetch("HEAD", url, Call(self._scope))
            except NotFoundError:
                raise _UploadLostError(str(error)) from error

    def _finish(self, location: Url, data: bytes, deadline: float) -> None:
        joint = "&" if "?" in location.target else "?"
        digest = self._descriptor.digest
        url = Url(location.origin, f"{location.target}{joint}digest={quote(digest, safe='')}")
        headers = {"Content-Type": "application/octet-stream"}
        call = Call(self._scope, (201, 204), headers, data)
        answer = self._session.once("PUT", url, call, deadline)
        stored = answer.headers.get("docker-content-digest", digest)
        if stored != digest:
            raise IntegrityError(f"{self._session.reference} stored {digest} as {stored[:80]!r}")

    def _cancel(self, location: Url) -> None:
        call = Call(self._scope, (200, 202, 204))
        with contextlib.suppress(Error):
            self._session.once("DELETE", location, call, self._session.deadline())

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
    """How many bytes of an upload a registry has; ``0-0`` is how they say none."""
    found = _STORED.fullmatch(answer.headers.get("range", ""))
    if found is None:
        return default
    last = int(found[1])
    return last + 1 if last else 0


def _read_exactly(source: BinaryIO, size_bytes: int) -> bytes:
    """``size_bytes`` from a source whose reads may be short; fewer only at its end."""
    data = source.read(size_bytes)
    if len(data) == size_bytes or not data:
        return data
    parts = [data]
    left = size_bytes - len(data)
    while left and (data := source.read(left)):
        parts.append(data)
        left -= len(data)
    return b"".join(parts)
