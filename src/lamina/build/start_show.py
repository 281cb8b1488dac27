"""What start artifacts are attached to an image, as profiles that people can read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from lamina.blob.start_artifact import PREFIX_BYTES, Tables, parse_prefix, parse_tables
from lamina.blob.start_seal import SealedStart
from lamina.build.start_profile import Profile, ProfileLine
from lamina.errors import FormatError
from lamina.http.client_options import ClientOptions
from lamina.oci.reference import parse_reference
from lamina.oci.start_manifest import StartEntry, own_starts
from lamina.opening.find_start import attached_starts, readable_entries
from lamina.opening.lazy_index import indexed_image
from lamina.registry.open_repository import open_repository
from lamina.registry.referrers import list_referrers
from lamina.registry.repository import Repository

if TYPE_CHECKING:
    from lamina.blob.seal import HiddenKey
    from lamina.content.lazy_image import LazyImage


class AttachedProfile(NamedTuple):
    """An artifact of an image: its name, its size, and the profile that it was made of."""

    name: str
    digest: str
    artifact_bytes: int
    pages: int
    profile: Profile

    def summary(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": self.name,
            "layer_digest": self.digest,
            "artifact_bytes": self.artifact_bytes,
            "pages": self.pages,
            "command": list(self.profile.command),
            "files": len({line.path for line in self.profile.lines}),
        }


def attached_profiles(
    image: LazyImage, reference: str, client: ClientOptions
) -> Iterator[AttachedProfile]:
    """Yield the artifacts of an opened image, the one that was attached last first.

    Raises what the repository raises, and FormatError or IntegrityError for a damaged one.
    """
    origin = image.origin
    if origin is None or origin.manifest is None or origin.reference is None:
        return
    opened = origin.reference.digest or ""
    subject = indexed_image(origin.manifest)
    with open_repository(parse_reference(reference), options=client) as repository:
        listed = list_referrers(repository, opened if subject is None else subject.digest)
        attached = attached_starts(repository, listed, opened)
        entries = [*attached, *own_starts(origin.manifest)]
        for entry in readable_entries(entries, lambda: image.start_secret):
            yield _attached(repository, entry, image.start_secret)


def _attached(
    repository: Repository, entry: StartEntry, secret: HiddenKey | None
) -> AttachedProfile:
    digest = entry.layer.digest
    with repository.open_blob(entry.layer) as stored:
        stream = stored
        if secret is not None:
            binding = bytes.fromhex(entry.image_digest.partition(":")[2])
            stream = SealedStart(stored, entry.layer.size, secret, binding)
        prefix = parse_prefix(_exactly(stream, PREFIX_BYTES))
        tables = parse_tables(prefix, _exactly(stream, prefix.stored_bytes))
    pages = sum(frame.page_count for frame in tables.frames)
    profile = Profile(tuple(_lines(tables)), entry.command)
    return AttachedProfile(entry.name, digest, entry.layer.size, pages, profile)


def _exactly(stream: BinaryIO, size_bytes: int) -> bytes:
    data = bytearray()
    while len(data) < size_bytes:
        part = stream.read(size_bytes - len(data))
        if not part:
            raise FormatError("the start artifact is shorter than it says")
        data += part
    return bytes(data)


def _lines(tables: Tables) -> Iterator[ProfileLine]:
    path: bytes | None = None
    spans: list[tuple[int, int]] = []
    for frame in tables.frames:
        for part in frame.files:
            name = tables.paths[part.owner]
            if path is not None and (name != path or (spans and part.first < spans[-1][1])):
                yield ProfileLine(path, tuple(spans))
                spans = []
            path = name
            spans.append((part.first, part.stop))
    if path is not None:
        yield ProfileLine(path, tuple(spans))
