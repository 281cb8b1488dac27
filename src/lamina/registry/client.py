"""A repository of an OCI registry.  Source: OCI distribution specification 1.1.

``read_into`` is the hot path of a container start: one request on a kept connection, its token and
the address that the registry redirects the blob to known from before, no copy of the body.  It
makes one attempt; retrying is the caller's, who knows other sources.  All other methods retry what
may pass.
"""

from __future__ import annotations

import math
import re
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO, Final, Self, cast

from lamina.errors import FetchError, FormatError, IntegrityError, NotFoundError
from lamina.http.client_options import ClientOptions
from lamina.http.http1 import Response
from lamina.http.transient import TransientError
from lamina.http.transport import translated
from lamina.http.url import Url, parse_url
from lamina.oci.manifest import (
    INDEX_TYPES,
    MANIFEST_TYPES,
    MAX_MANIFEST_BYTES,
    OCI_INDEX,
    SCHEMA1_TYPES,
    Descriptor,
    describe,
    detect_media_type,
    parse_index,
)
from lamina.oci.reference import Reference, is_digest
from lamina.registry.blob_stream import BlobStream, check_range
from lamina.registry.growing_upload import GrowingUpload
from lamina.registry.repository import Progress, Repository
from lamina.registry.session import SUCCESS, Call, RangeRefusedError, Session
from lamina.registry.upload import Habits, Upload
from lamina.registry.verify import check_bytes, check_digest, describe_as, has_digest, verified
from lamina.source.blob_source import RangesIgnoredError

if TYPE_CHECKING:
    from lamina.registry.hosts_file import RegistryHost

# Schema 1 is accepted so that the registry sends what there is, and the refusal can say so.
_ACCEPT: Final = ", ".join(
    (*MANIFEST_TYPES, *INDEX_TYPES, *(f"{kind};q=0.1" for kind in SCHEMA1_TYPES))
)
_REDIRECT_LIFETIME_S: Final = 30.0
_MOST_CUT_BYTES: Final = 1 << 20
_MOST_DIGITS: Final = 18
_MAX_PAGES: Final = 64
_NEXT_PAGE: Final = re.compile(r"<([^<>]{1,2000})>\s*;\s*rel=\"?next\"?")
_EXPIRED: Final = (400, 401, 403, 404, 410)
_REFUSED: Final = (400, 401, 403)


class RegistryRepository:
    """A repository of a registry.  Thread-safe; opening it makes no request.

    With ``write`` all that is asked of it asks for the right to push too: registries that make a
    repository at the first push refuse to look into one that is not there to anybody else.
    """

    def __init__(
        self,
        reference: Reference,
        options: ClientOptions,
        *,
        write: bool = False,
        host: RegistryHost | None = None,
    ) -> None:
        """Ask *host*, by default the registry itself."""
        self._reference = reference
        self.name = str(reference)
        if host is not None and host.is_mirror:
            self.name += f" at {host.authority}"
        self._session = Session(reference, options, host)
        self._push = self._session.scope("pull,push")
        self._pull = self._push if write else self._session.scope()
        self._habits = Habits()
        self._lock = threading.Lock()
        self._redirects: dict[str, tuple[Url, float]] = {}

    @property
    def reference(self) -> Reference:
        """What it was opened with."""
        return self._reference

    def resolve(self, version: str | None = None) -> Descriptor:
        """Return the manifest or index of a tag or digest; None means the reference's own."""
        return self.manifest(version)[0]

    def manifest(
        self, which: Descriptor | str | None = None, *, timeout_s: float | None = None
    ) -> tuple[Descriptor, bytes]:
        """Return a manifest or index with its bytes (≤ 4 MiB), digest verified.

        By tag the digest is the one of the bytes; a ``Docker-Content-Digest`` that differs is an
        IntegrityError.
        """
        if isinstance(which, Descriptor):
            if which.size > MAX_MANIFEST_BYTES:
                raise FormatError(f"the manifest {which.digest} has {which.size} bytes: too many")
            version = which.digest
        else:
            version = which or self._reference.version or "latest"
        limit = math.inf if timeout_s is None else time.monotonic() + timeout_s
        answer = self._session.fetch(
            "GET",
            self._session.url(f"manifests/{version}", limit),
            Call(self._pull, headers={"Accept": _ACCEPT}, limit_bytes=MAX_MANIFEST_BYTES),
            limit,
        )
        where = self.name
        if isinstance(which, Descriptor):
            check_bytes(answer.data, which, where)
            return which, answer.data
        claimed = answer.headers.get("docker-content-digest", "")
        for digest in (version, claimed):
            if is_digest(digest):
                check_digest(answer.data, digest, where)
        media_type = detect_media_type(answer.data, f"manifest of {where}")
        descriptor = describe(media_type, answer.data)
        if is_digest(version):
            descriptor = Descriptor(media_type=media_type, digest=version, size=len(answer.data))
        return descriptor, answer.data

    def open_blob(self, descriptor: Descriptor) -> BinaryIO:
        """Return a stream of a blob; it goes on where it was if the connection breaks."""

        def get(headers: dict[str, str], deadline: float) -> tuple[Response, Url]:
            return self.get_blob(descriptor.digest, headers, deadline)

        stream = BlobStream(self._session, get, descriptor.size)
        try:
            stream.start()
        except BaseException:
            stream.close()
            raise
        return verified(cast("BinaryIO", stream), descriptor, self.name)

    def read_range(self, digest: str, offset: int, size_bytes: int) -> bytes:
        """Return exactly these bytes of a blob, or FetchError."""
        if size_bytes < 0:
            raise FetchError(f"{self._reference}: {digest} has no range {offset}+{size_bytes}")
        buffer = bytearray(size_bytes)
        self.read_into(digest, offset, memoryview(buffer))
        return bytes(buffer)

    def read_into(
        self, digest: str, offset: int, buffer: memoryview, *, timeout_s: float | None = None
    ) -> None:
        """Fill a buffer with bytes of a blob, or FetchError (NotFoundError if there is no such
        blob), within *timeout_s* if it is given.
        """
        size_bytes = len(buffer)
        if size_bytes == 0 and offset >= 0:
            return
        if offset < 0:
            raise FetchError(f"{self._reference}: {digest} has no range {offset}+{size_bytes}")
        deadline = self._session.range_deadline(size_bytes)
        if timeout_s is not None:
            deadline = min(deadline, time.monotonic() + timeout_s)
        headers = {"Range": f"bytes={offset}-{offset + size_bytes - 1}"}
        try:
            response, url = self.get_blob(digest, headers, deadline)
        except RangeRefusedError as error:
            if (error.total_bytes or 0) >= offset + size_bytes:
                raise TransientError(f"{error}, of {error.total_bytes} bytes") from error
            raise
        try:
            with translated(url.origin):
                if response.status == 200:
                    count = _cut(response, offset, buffer)
                else:
                    check_range(response, offset, offset + size_bytes - 1)
                    count = response.fill(buffer)
        finally:
            response.close()
        if count != size_bytes:
            raise TransientError(
                f"{url.without_query} sent {count} bytes of the range {offset}+{size_bytes}"
            )

    def get_blob(
        self, digest: str, headers: dict[str, str], deadline: float
    ) -> tuple[Response, Url]:
        """GET a blob, at the place that the registry sent us to before if it did; status 200 or
        206.
        """
        known = self._redirects.get(digest)
        session = self._session
        if known is not None and known[1] > time.monotonic():
            response, url = session.send("GET", known[0], self._pull, headers, None, deadline)
            if response.status not in _EXPIRED:
                session.check(response, url, (200, 206))
                return response, url
            response.close()
        home = session.url(f"blobs/{digest}")
        response, url = session.send("GET", home, self._pull, headers, None, deadline)
        if response.status in _REFUSED and url.origin != home.origin:
            # Not the user's permissions: the registry has signed an address that is not good (any
            # more), and will sign another.
            response.close()
            raise TransientError(
                f"{home.without_query} redirects to {url.origin}, which answers {response.status}"
            )
        session.check(response, url, (200, 206))
        with self._lock:
            self._redirects.pop(digest, None)
            if url != home:
                self._redirects[digest] = (url, time.monotonic() + _REDIRECT_LIFETIME_S)
        return response, url

    def has_blob(self, digest: str, size_bytes: int) -> bool:
        """Tell whether a blob of this digest is there; its size too, if the registry tells it."""
        return self._has_blob(digest, size_bytes, self._pull)

    def blob_size(self, digest: str) -> int:
        """Return how many bytes a blob has, as the registry says.  Raises NotFoundError,
        FetchError.
        """
        url = self._session.url(f"blobs/{digest}")
        length = self._session.fetch("HEAD", url, Call(self._pull)).headers.get(
            "content-length", ""
        )
        if not (length.isascii() and length.isdecimal()) or len(length) > _MOST_DIGITS:
            raise FetchError(f"{url.without_query} does not say how long the blob is")
        return int(length)

    def _has_blob(self, digest: str, size_bytes: int, scope: str) -> bool:
        url = self._session.url(f"blobs/{digest}")
        try:
            answer = self._session.fetch("HEAD", url, Call(scope, SUCCESS))
        except NotFoundError:
            return False
        return answer.headers.get("content-length", str(size_bytes)) == str(size_bytes)

    def push_blob(
        self, descriptor: Descriptor, source: BinaryIO, progress: Progress | None = None
    ) -> None:
        """Store a blob unless it is there; IntegrityError if the source is not what the descriptor
        says.
        """
        if self._is_there(descriptor):
            if progress:
                progress(descriptor.size)
            return
        Upload(self._session, descriptor, self._habits, progress).run(source)

    def start_upload(self, progress: Progress | None = None) -> GrowingUpload:
        """Return what takes a blob whose digest is not known yet."""
        return GrowingUpload(self._session, self._habits, progress)

    def mount_blob(self, descriptor: Descriptor, origin: Repository) -> bool:
        """Let the registry take a blob over from another of its repositories; False if not."""
        other = origin.reference
        if not other.is_remote or other.registry != self._reference.registry:
            return False
        if other.repository == self._reference.repository:
            return self._is_there(descriptor)
        return Upload(self._session, descriptor, self._habits).mount(other.repository)

    def _is_there(self, descriptor: Descriptor) -> bool:
        """Tell whether a blob need not be pushed.  A registry that refuses to say so says why when
        it is pushed.
        """
        try:
            return self._has_blob(descriptor.digest, descriptor.size, self._push)
        except TransientError:
            raise
        except FetchError:
            return False

    def push_manifest(
        self, tag: str | None, media_type: str, data: bytes, *, digest: str | None = None
    ) -> Descriptor:
        """Store a manifest or index under a tag, or by its digest only; the answer's digest is
        checked.
        """
        descriptor = describe_as(media_type, data, digest, "the manifest that is pushed")
        return self._put_manifest(tag, descriptor, data)[0]

    def push_referring(
        self, tag: str | None, media_type: str, data: bytes
    ) -> tuple[Descriptor, bool]:
        """Store a manifest that has a subject; also whether the registry says, by ``OCI-Subject``,
        that it lists it.
        """
        descriptor, headers = self._put_manifest(tag, describe(media_type, data), data)
        return descriptor, "oci-subject" in headers

    def referrers(self, digest: str) -> Iterator[Descriptor]:
        """Yield what the referrers API lists, page by page; NotFoundError if the registry has no
        such API.

        Raises FormatError for pages that do not end or are no lists.
        """
        call = Call(self._pull, headers={"Accept": OCI_INDEX}, limit_bytes=MAX_MANIFEST_BYTES)
        url = self._session.url(f"referrers/{digest}")
        asked: set[Url] = set()
        deadline = self._session.deadline()
        while url not in asked:
            if len(asked) == _MAX_PAGES:
                raise FormatError(f"the list has more than {_MAX_PAGES} pages")
            asked.add(url)
            answer = self._session.fetch("GET", url, call, deadline)
            yield from parse_index(answer.data, f"answer of {url.without_query}").manifests
            following = _NEXT_PAGE.search(answer.headers.get("link", ""))
            if following is None:
                break
            url = parse_url(following[1], answer.url)

    def _put_manifest(
        self, tag: str | None, descriptor: Descriptor, data: bytes
    ) -> tuple[Descriptor, dict[str, str]]:
        answer = self._session.fetch(
            "PUT",
            self._session.url(f"manifests/{tag or descriptor.digest}"),
            Call(
                self._push,
                expected=SUCCESS,
                headers={"Content-Type": descriptor.media_type},
                body=data,
            ),
        )
        stored = answer.headers.get("docker-content-digest", "")
        if is_digest(stored) and not has_digest(data, stored):
            raise IntegrityError(
                f"{self._reference} stored the manifest {descriptor.digest} as {stored[:80]!r}"
            )
        return descriptor, answer.headers

    def close(self) -> None:
        """Close the connections; again does nothing."""
        self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @property
    def session(self) -> Session:
        """The session of its requests."""
        return self._session


def _cut(response: Response, offset: int, buffer: memoryview) -> int:
    """Fill a buffer with its range out of a whole blob, if little else comes with it; return the
    count.

    All of it is read, since a cache keeps only what is.
    """
    length = response.length_bytes
    if length is None or length - len(buffer) > _MOST_CUT_BYTES:
        raise RangesIgnoredError(
            f"the registry ignores ranges and sends a whole blob for its bytes from {offset} on",
            hint="a registry, proxy or cache without range requests cannot serve images lazily",
        )
    data = response.read(max(length, 1))[offset : offset + len(buffer)]
    buffer[: len(data)] = data
    return len(data)
