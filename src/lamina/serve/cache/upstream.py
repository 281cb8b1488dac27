"""The repositories that the cache may ask, and what it has learned of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from lamina.errors import NotFoundError, UsageError
from lamina.oci.manifest import Descriptor
from lamina.oci.reference import Reference, is_digest, parse_reference
from lamina.registry.client import RegistryRepository
from lamina.registry.repository_source import RepositorySource
from lamina.serve.cache.bounded import Bounded
from lamina.serve.cache.pool import Pool
from lamina.source.fetcher import Fetcher
from lamina.source.retry import RetryPolicy

if TYPE_CHECKING:
    from lamina.http.client_options import ClientOptions

MAX_REPOSITORIES: Final = 256
MAX_MANIFEST_MEMORY_BYTES: Final = 64 << 20
MAX_SIZES: Final = 1 << 16
DEADLINE_S: Final = 30.0


class Found(NamedTuple):
    """A manifest or index."""

    descriptor: Descriptor
    data: bytes


class UpstreamRepository:
    """One repository of a registry.  Threads share it."""

    def __init__(self, reference: Reference, options: ClientOptions) -> None:
        self.name = reference.name
        self.registry = reference.registry
        self.repository = RegistryRepository(reference, options)
        source = RepositorySource(self.repository)
        self.source = Fetcher([source], policy=RetryPolicy(deadline_s=DEADLINE_S))

    def close(self) -> None:
        """Close the connections."""
        self.repository.close()


class Upstream:
    """The repositories below some prefixes, ``HOST`` or ``HOST/PATH``.  Threads share it."""

    def __init__(self, prefixes: Sequence[str], options: ClientOptions) -> None:
        """Allow what is below *prefixes*.  Raises UsageError for one that cannot be one."""
        self._prefixes = tuple(map(_checked_prefix, prefixes))
        # A file of mirrors on this machine may well name this cache.
        self._options = replace(options, hosts_dirs=())
        self._repositories: Pool[str, UpstreamRepository] = Pool(MAX_REPOSITORIES)
        self._manifests: Bounded[tuple[str, str], Found] = Bounded(MAX_MANIFEST_MEMORY_BYTES)
        self._sizes: Bounded[tuple[str, str], int] = Bounded(MAX_SIZES)

    @property
    def only_registry(self) -> str | None:
        """The registry that is meant where a request names none, if there is one only."""
        registries = {prefix.partition("/")[0] for prefix in self._prefixes}
        return min(registries) if len(registries) == 1 else None

    @contextmanager
    def repository(self, registry: str, name: str) -> Iterator[UpstreamRepository]:
        """Give a repository.  Raises UsageError for names that are none, NotFoundError for those
        that are not below a prefix.
        """
        reference = parse_reference(f"docker://{registry}/{name}").with_version()
        allowed = any(f"{reference.name}/".startswith(f"{each}/") for each in self._prefixes)
        if reference.repository != name or not allowed:
            raise NotFoundError("this cache does not serve that repository")
        with self._repositories.using(
            reference.name, lambda: UpstreamRepository(reference, self._options)
        ) as found:
            yield found

    def manifest(self, asked: UpstreamRepository, version: str) -> Found:
        """Return a manifest or index: by tag as the registry has it now, by digest from memory if
        it is there.
        """
        key = asked.name, version
        if is_digest(version) and (known := self._manifests.get(key)) is not None:
            return known
        found = Found(*asked.repository.manifest(version, timeout_s=DEADLINE_S))
        self._manifests.put((asked.name, found.descriptor.digest), found, len(found.data))
        return found

    def size(self, asked: UpstreamRepository, digest: str) -> int:
        """Return the size of a blob that the repository has.  Raises NotFoundError, FetchError."""
        known = self._sizes.get((asked.name, digest))
        if known is None:
            known = asked.repository.blob_size(digest)
            self._sizes.put((asked.name, digest), known)
        return known

    def close(self) -> None:
        """Close all connections."""
        self._repositories.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _checked_prefix(text: str) -> str:
    try:
        reference = parse_reference(f"docker://{text}/any")
    except UsageError:
        reference = None
    if reference is None or reference.name != f"{text}/any":
        raise UsageError(
            f"{text[:200]!r} is no registry and no beginning of a repository's name",
            hint="write HOST:PORT, or HOST/PATH for the repositories below it",
        )
    return text
