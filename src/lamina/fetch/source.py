"""Where the bytes of blobs come from.

A source delivers exactly the bytes asked for or raises FetchError; whether they are the right ones
is not its business (every chunk is verified after it was decoded).
"""

from __future__ import annotations

import logging
import os
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from lamina.errors import AuthError, FetchError, NotFoundError

if TYPE_CHECKING:
    from lamina.registry.repository import Repository

T = TypeVar("T")

LOG: Final = logging.getLogger("lamina")


class Source(Protocol):
    """A place that has blobs.  Threads share it.  A ``name`` attribute, if any, is for messages."""

    def read_range(self, blob_id: str, offset: int, size_bytes: int) -> bytes:
        """Return exactly these bytes of the blob, or raise FetchError."""


def source_name(source: Source) -> str:
    """Return what to call *source* in a message."""
    return str(getattr(source, "name", type(source).__name__))


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how long to try again.

    The n-th pause is a random time up to ``min(first_pause_s * 2**n, max_pause_s)``, so that many
    nodes whose registry was away do not come back at the same moment, or what the registry asked
    for if that is longer.  No attempt starts after ``deadline_s``.
    """

    attempts: int = 5
    first_pause_s: float = 0.1
    max_pause_s: float = 5.0
    deadline_s: float = 60.0


def with_retry(
    action: Callable[[], T],
    policy: RetryPolicy,
    *,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> T:
    """Run *action* until it succeeds, within the bounds of *policy*.

    Only a FetchError is tried again, and not an AuthError: credentials do not become right by
    asking twice.  Raises the last error.
    """
    give_up = clock() + policy.deadline_s
    for attempt in range(policy.attempts):
        try:
            return action()
        except AuthError:
            raise
        except FetchError as error:
            bound = min(policy.first_pause_s * 2**attempt, policy.max_pause_s)
            # Chance only spreads the load here; it guards nothing.
            pause = max(random.uniform(0, bound), getattr(error, "retry_after_s", 0.0))  # noqa: S311
            if attempt + 1 >= policy.attempts or clock() + pause >= give_up:
                raise
            LOG.debug("attempt %d failed, next in %.2f s: %s", attempt + 1, pause, error)
            sleep(pause)
    raise AssertionError("a retry policy needs at least one attempt")


class RepositorySource:
    """Blobs of one OCI repository, where a blob's id is the hex of its digest."""

    def __init__(
        self,
        repository: Repository,
        *,
        policy: RetryPolicy | None = None,
        digests: Mapping[str, str] | None = None,
    ) -> None:
        """Read from *repository*, which stays the caller's.

        *digests* gives the registry digest of blobs whose id is not it (RAFS v6 §2.8).
        """
        self.name = str(repository.reference)
        self._repository = repository
        self._policy = policy or RetryPolicy()
        self._digests = digests or {}

    def read_range(self, blob_id: str, offset: int, size_bytes: int) -> bytes:
        """Return exactly these bytes; raises FetchError naming the repository, or NotFoundError."""
        digest = self._digests.get(blob_id, f"sha256:{blob_id}")

        def fetch() -> bytes:
            data = self._repository.read_range(digest, offset, size_bytes)
            return _exactly(data, self.name, blob_id, offset, size_bytes)

        return with_retry(fetch, self._policy)


class DirectorySource:
    """Blobs as files of a directory, named by their id (``nydus-image create --blob-dir``)."""

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.name = os.fspath(directory)

    def read_range(self, blob_id: str, offset: int, size_bytes: int) -> bytes:
        """Return exactly these bytes; raises FetchError, or NotFoundError if there is no file."""
        if os.sep in blob_id or blob_id.startswith("."):
            raise NotFoundError(f"blob id {blob_id!r} cannot be the name of a file")
        path = os.path.join(self.name, blob_id)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise NotFoundError(f"there is no blob {blob_id} in {self.name}") from error
        except OSError as error:
            raise FetchError(f"cannot open {path}: {error.strerror}") from error
        try:
            data = os.pread(fd, size_bytes, offset)
        except OSError as error:
            raise FetchError(f"cannot read {path}: {error.strerror}") from error
        finally:
            os.close(fd)
        return _exactly(data, self.name, blob_id, offset, size_bytes)


def _exactly(data: bytes, name: str, blob_id: str, offset: int, size_bytes: int) -> bytes:
    if len(data) != size_bytes:
        raise FetchError(
            f"{name} sent {len(data)} bytes of blob {blob_id} where {size_bytes} were asked for"
            f" at offset {offset}"
        )
    return data
