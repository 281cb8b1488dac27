"""Which start artifact of an image is used, and its bytes as a stream.

An image has artifacts of its own, as layers, and others that are attached to it.  Those of a sealed
image are sealed; what they are called is known only with its keys.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from io import BytesIO
from typing import TYPE_CHECKING, BinaryIO, Final, NamedTuple

import msgspec

from lamina.errors import Error
from lamina.oci.manifest import Descriptor, parse_image_manifest
from lamina.oci.start_manifest import (
    START_ARTIFACT,
    START_LAYER,
    StartEntry,
    StartRule,
    choose_start,
    exact_start,
    own_starts,
    start_entries,
)

if TYPE_CHECKING:
    from lamina.blob.seal import HiddenKey
    from lamina.opening.manifest import FoundManifest
    from lamina.opening.place import Place
    from lamina.registry.repository import Repository
    from lamina.store.node import NodeStore

LOG: Final = logging.getLogger("lamina")

MOST_ASKED: Final = 16
"""How many manifests are read for annotations that a list does not have."""

Secret = Callable[[], "HiddenKey | None"]
"""Returns the secret of a sealed image's artifacts, as soon as the image is open."""


class FoundStart(NamedTuple):
    """An artifact that begins to arrive, and the digest that it must name: of the manifest whose
    pages it has, or of the metadata layer if it is part of the image.
    """

    stream: BinaryIO
    image_digest: str


def find_start(
    place: Place, found: FoundManifest, rule: StartRule, secret: Secret
) -> FoundStart | None:
    """Open the artifact that *rule* wants, from the store if it is there; None if there is none.

    Raises what the repository raises.
    """
    own = own_starts(found.manifest)
    entry = exact_start(readable_entries(own, secret), rule)
    if entry is None:
        subject = found.digest if found.indexed is None else found.indexed.image_digest
        listed = place.referrers(subject)
        attached = attached_starts(place.repository, listed, found.digest)
        entry = _choose([*attached, *own], rule, secret)
    if entry is None:
        if rule.name is not None:
            LOG.warning("%s has no start artifact %r", place.reference, rule.name)
        return None
    LOG.debug("start artifact %s of %s", entry.layer.digest, entry.shown_command or "the command")
    stream = _open(place, entry.layer)
    if not found.manifest.is_sealed:
        return FoundStart(stream, entry.image_digest)
    from lamina.blob.start_seal import SealedStart, require_secret

    try:
        key = require_secret(secret())
        binding = bytes.fromhex(entry.image_digest.partition(":")[2])
        opened = SealedStart(stream, entry.layer.size, key, binding)
    except BaseException:
        stream.close()
        raise
    return FoundStart(opened, entry.image_digest)


def attached_starts(
    repository: Repository, referrers: Sequence[Descriptor], image_digest: str
) -> list[StartEntry]:
    """Return the artifacts among *referrers* that have pages of a manifest, the last first.

    Raises what the repository raises.
    """
    listed = list(referrers)
    asked = 0
    for number, each in enumerate(listed):
        # Folders, and some registries, list without annotations.
        bare = each.artifact_type == START_ARTIFACT and START_LAYER not in each.annotations
        if bare and asked < MOST_ASKED:
            asked += 1
            listed[number] = _with_annotations(repository, each)
    return start_entries(listed, image_digest)


def _with_annotations(repository: Repository, entry: Descriptor) -> Descriptor:
    try:
        manifest = parse_image_manifest(repository.manifest(entry)[1], f"manifest {entry.digest}")
    except Error as error:
        LOG.debug("the start artifact %s is passed over: %s", entry.digest, error)
        return entry
    return msgspec.structs.replace(entry, annotations=manifest.annotations)


def readable_entries(entries: Sequence[StartEntry], secret: Secret) -> list[StartEntry]:
    """Return entries with names and commands; sealed ones that the secret does not open are left
    out.
    """
    if not any(entry.label for entry in entries):
        return list(entries)
    from lamina.blob.start_seal import open_label

    key = secret()
    found = []
    for entry in entries:
        if not entry.label:
            found.append(entry)
        elif key is not None:
            binding = bytes.fromhex(entry.image_digest.partition(":")[2])
            label = open_label(entry.label, key, binding)
            opened = None if label is None else entry.with_label(label)
            if opened is not None:
                found.append(opened)
    return found


def _choose(entries: Sequence[StartEntry], rule: StartRule, secret: Secret) -> StartEntry | None:
    if len(entries) == 1 and rule.name is None:
        # It can come before its name can be read.
        return entries[0]
    return choose_start(readable_entries(entries, secret), rule)


def _open(place: Place, layer: Descriptor) -> BinaryIO:
    kept = place.store.metadata(layer.digest)
    if kept is not None:
        return BytesIO(kept)
    return _Kept(place.repository.open_blob(layer), place.store, layer)


class _Kept(BytesIO):
    """A stream whose bytes are kept in the store when it was read to its end."""

    def __init__(self, inner: BinaryIO, store: NodeStore, layer: Descriptor) -> None:
        super().__init__()
        self._inner = inner
        self._store = store
        self._layer = layer
        self._parts: list[bytes] = []

    def read(self, size: int | None = -1, /) -> bytes:
        """Return the next bytes; the last read verifies the digest of them all."""
        data = self._inner.read(-1 if size is None else size)
        if data:
            self._parts.append(data)
        elif self._parts:
            whole = b"".join(self._parts)
            self._parts.clear()
            try:
                self._store.put_metadata(whole, self._layer.digest)
            except Error as error:
                LOG.debug("the start artifact is not kept: %s", error)
        return data

    def close(self) -> None:
        """Close the stream below."""
        self._inner.close()
        super().close()
