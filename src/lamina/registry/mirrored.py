"""A repository of a registry that has mirrors: each question goes to who may answer it, in order.

What a tag means is asked of hosts that may *resolve*, what has a digest of those that may *pull*,
what refers to a manifest of those with *referrers* (containerd, ``docs/hosts.md``).  A host that is
down, slow, answers with an error or sends wrong bytes is passed over, and asked last for a while.
The bytes are verified whoever sends them.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import IO, TYPE_CHECKING, BinaryIO, Final, NamedTuple, NoReturn, Self, TypeVar, cast

from lamina.errors import (
    Error,
    FetchError,
    FormatError,
    IntegrityError,
    NotFoundError,
    StoreError,
    UnsupportedError,
    UsageError,
)
from lamina.http.client_options import ClientOptions
from lamina.oci.manifest import Descriptor
from lamina.oci.reference import Reference, is_digest
from lamina.registry.client import RegistryRepository
from lamina.registry.referrers import is_fallback_tag
from lamina.registry.repository_source import Host
from lamina.registry.verify import COPY_BYTES
from lamina.source.blob_source import RangesIgnoredError
from lamina.source.health import Health

if TYPE_CHECKING:
    from lamina.registry.hosts_file import RegistryHost

LOG: Final = logging.getLogger("lamina")

MIRROR_WAIT_S: Final = 5.0
"""For how long a mirror is waited for, at most: there is somebody else to ask."""

MIRROR_DOCUMENT_S: Final = 15.0
"""The same for the whole of a manifest."""

_WHOLE_BYTES: Final = 16 << 20
"""What is kept in memory until it is proven; more goes to a file."""

_PASSED_OVER: Final = (FetchError, FormatError, IntegrityError, NotFoundError, UnsupportedError)

_health: Final[dict[str, Health]] = {}
_health_lock: Final = threading.Lock()

T = TypeVar("T")


class Member(NamedTuple):
    """One host, what it may be asked, and how it has done in this process."""

    repository: RegistryRepository
    host: RegistryHost
    health: Health


class MirroredRepository:
    """See the module.  Thread-safe; opening it makes no request.  Nothing is written to it."""

    def __init__(
        self, reference: Reference, options: ClientOptions, hosts: Sequence[RegistryHost]
    ) -> None:
        self._reference = reference
        self._members = tuple(_member(reference, options, host) for host in hosts)

    @property
    def reference(self) -> Reference:
        """What it was opened with."""
        return self._reference

    @property
    def pulled_from(self) -> tuple[Host, ...]:
        """Who is asked for blobs, in their order.  Raises NotFoundError if nobody may be."""
        return tuple(
            Host(each.repository, each.repository.name, each.health) for each in self._able("pull")
        )

    def resolve(self, version: str | None = None) -> Descriptor:
        """Return the manifest or index of a tag or digest; None means the reference's own."""
        return self.manifest(version)[0]

    def manifest(
        self, which: Descriptor | str | None = None, *, timeout_s: float | None = None
    ) -> tuple[Descriptor, bytes]:
        """Return a manifest or index with its bytes, as a registry does."""
        version = which.digest if isinstance(which, Descriptor) else which
        version = version or self._reference.version or "latest"
        named, share = is_digest(version), _Share(timeout_s)

        def ask(member: Member, others: int) -> tuple[Descriptor, bytes]:
            limit_s = share.left_s(others)
            if others and member.host.is_mirror:
                limit_s = MIRROR_DOCUMENT_S if limit_s is None else min(limit_s, MIRROR_DOCUMENT_S)
            return member.repository.manifest(which, timeout_s=limit_s)

        if is_fallback_tag(version):
            return self._first_if_any("resolve", ask)
        return self._first("pull" if named else "resolve", version if named else "", ask)

    def open_blob(self, descriptor: Descriptor) -> BinaryIO:
        """Return a stream of a blob.  What a mirror sends is proven before the first byte of it is
        passed on: to take up bytes that turn out wrong at the end nobody could be helped any more.

        Raises StoreError if a blob of more than 16 MiB has no room among the temporary files.
        """

        def ask(member: Member, others: int) -> BinaryIO:
            stream = member.repository.open_blob(descriptor)
            # The last one need not be proven for the sake of somebody who is asked after it.
            is_checked = member.host.is_mirror and others
            return _proven(stream, descriptor.size) if is_checked else stream

        return self._first("pull", descriptor.digest, ask)

    def read_range(self, digest: str, offset: int, size_bytes: int) -> bytes:
        """Return exactly these bytes of a blob, as :meth:`read_into` gets them."""
        buffer = bytearray(size_bytes)
        self.read_into(digest, offset, memoryview(buffer))
        return bytes(buffer)

    def read_into(
        self, digest: str, offset: int, buffer: memoryview, *, timeout_s: float | None = None
    ) -> None:
        """Fill a buffer with bytes of a blob, which are not verified."""
        share = _Share(timeout_s)

        def ask(member: Member, others: int) -> None:
            left_s = share.left_s(others)
            member.repository.read_into(digest, offset, buffer, timeout_s=left_s)

        self._first("pull", digest, ask)

    def has_blob(self, digest: str, size_bytes: int) -> bool:
        """Tell whether a host has a blob."""

        def ask(member: Member, _: int) -> bool:
            if not member.repository.has_blob(digest, size_bytes):
                raise NotFoundError(f"{member.repository.name} has no {digest}")
            return True

        try:
            return self._first("pull", digest, ask)
        except NotFoundError:
            return False

    def referrers(self, digest: str) -> Iterator[Descriptor]:
        """Yield what the first host lists that lists anything; NotFoundError if none has a list."""

        def ask(member: Member, others: int) -> list[Descriptor]:
            found = list(member.repository.referrers(digest))
            if not found and others:
                # A mirror need not know what was attached since it looked.
                name = member.repository.name
                raise NotFoundError(f"{name} lists nothing that refers to {digest}")
            return found

        yield from self._first_if_any("referrers", ask)

    def push_blob(self, *_: object, **__: object) -> None:
        """Refuse: it was opened for reading."""
        self._refuse()

    def mount_blob(self, *_: object, **__: object) -> bool:
        """Refuse: it was opened for reading."""
        self._refuse()

    def push_manifest(self, *_: object, **__: object) -> Descriptor:
        """Refuse: it was opened for reading."""
        self._refuse()

    def close(self) -> None:
        """Close the connections; again does nothing."""
        for member in self._members:
            member.repository.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _able(self, capability: str) -> list[Member]:
        able = [each for each in self._members if capability in each.host.capabilities]
        if not able:
            raise NotFoundError(
                f"no host of {self._reference.registry} may be asked to {capability}",
                hint="see the capabilities in its hosts.toml",
            )
        return able

    def _first(self, capability: str, name: str, ask: Callable[[Member, int], T]) -> T:
        """Return the first answer to *ask*, which is told how many there are to ask after it.

        *name* is what may be lacking, if a host can know that.  Raises the error of the last host
        in the file, which is as a rule the registry itself, and NotFoundError if nobody may be
        asked.
        """
        now = time.monotonic()
        order = sorted(self._able(capability), key=lambda each: each.health.rank(name, now))
        errors: dict[int, Error] = {}
        for number, member in enumerate(order):
            try:
                found = ask(member, len(order) - number - 1)
            except _PASSED_OVER as error:
                _pass_over(member, name, error)
                errors[self._members.index(member)] = error
            else:
                member.health.succeeded()
                return found
        raise errors[max(errors)]

    def _first_if_any(self, capability: str, ask: Callable[[Member, int], T]) -> T:
        """Return the first answer, for what need not be there at all: that one host has nothing is
        an answer, if the others have none.
        """
        lacking: list[NotFoundError] = []

        def note(member: Member, others: int) -> T:
            try:
                return ask(member, others)
            except NotFoundError as error:
                lacking.append(error)
                raise

        try:
            return self._first(capability, "", note)
        except FetchError:
            if lacking:
                raise lacking[0] from None
            raise

    def _refuse(self) -> NoReturn:
        raise UsageError(f"{self._reference} was opened for reading")


class _Share:
    """The time that there is, divided among those that may still be asked."""

    def __init__(self, timeout_s: float | None) -> None:
        self._until = None if timeout_s is None else time.monotonic() + timeout_s

    def left_s(self, others: int) -> float | None:
        if self._until is None:
            return None
        return max(self._until - time.monotonic(), 0.0) / (others + 1)


def _pass_over(member: Member, name: str, error: Error) -> None:
    lies = isinstance(error, IntegrityError | FormatError)
    LOG.log(
        logging.WARNING if lies else logging.DEBUG,
        *("%s is passed over: %s", member.repository.name, error),
    )
    if isinstance(error, NotFoundError) and not name:
        return
    if not isinstance(error, RangesIgnoredError):
        member.health.failed(name, error, time.monotonic())


def _member(reference: Reference, options: ClientOptions, host: RegistryHost) -> Member:
    if host.connect_timeout_s is not None:
        options = replace(options, connect_timeout_s=host.connect_timeout_s)
    if host.is_mirror:
        wait_s = min(options.timeout_s, MIRROR_WAIT_S)
        options = replace(options, attempts=1, timeout_s=wait_s)
    with _health_lock:
        health = _health.setdefault(f"{host.scheme}://{host.authority}{host.path}", Health())
    repository = RegistryRepository(reference, options, host=host)
    return Member(repository, host, health)


def _proven(stream: BinaryIO, size_bytes: int) -> BinaryIO:
    """Return a file of all that a verified stream has, which is closed."""
    import tempfile

    file = tempfile.SpooledTemporaryFile(_WHOLE_BYTES)
    try:
        with stream:
            while data := stream.read(COPY_BYTES):
                _write(file, data, size_bytes)
        file.seek(0)
    except BaseException:
        file.close()
        raise
    return cast("BinaryIO", file)


def _write(file: IO[bytes], data: bytes, size_bytes: int) -> None:
    try:
        file.write(data)
    except OSError as error:
        from tempfile import gettempdir

        raise StoreError(
            f"a blob of {size_bytes} bytes from a mirror has no room in {gettempdir()}:"
            f" {error.strerror}",
            hint="name a folder with more room by TMPDIR",
        ) from error
