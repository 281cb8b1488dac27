"""The records of the node store: small facts about what has a digest, or a name.

::

    ROOT/records/KIND/ALGORITHM-HEX    0   64 bytes   SHA-256 of the content in hex digits
                                       64   1 byte    newline
                                       65             the content

The content is JSON.  Its first version is what stands in the fields of the types here, for
signatures an array and for an index the bare digest; a later one is an object with ``version`` from
2 on.  Lamina of several versions may use a store at one time: what a later one wrote is either made
anew, where it can be, or an error that says so, and never taken for less than it says.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final, Generic, NamedTuple, TypeVar

import msgspec

from lamina.errors import StoreError
from lamina.store.files import (
    make_private_directory,
    store_error,
    store_errors,
    write_atomically,
)
from lamina.store.names import digest_of_file, name_digest, split_digest

VERSION: Final = 1
DIGEST: Final = r"\A(sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})\Z"
_PREFIX_BYTES: Final = 65


class MetadataFiles(msgspec.Struct, frozen=True):
    """``image``: digests of the metadata of one image, by the digest of its manifest.

    ``tables`` has the chunk table of each blob that came with one, by blob id; ``chunk_sets`` a
    digest over the digests of each blob's chunks
    (:func:`lamina.opening.metadata_layer.chunk_sets`).  ``attached`` are more files that the image
    cannot be opened without.  ``fetched`` are the blobs whose table did not come with the image but
    from the blob, and can be fetched again.  ``check`` is the version of the rules that the
    bootstrap was found to keep (:data:`~lamina.erofs.layout.CHECK_VERSION`), 0 if nobody looked.
    ``diff_id`` is the digest of the metadata layer's tar, empty if nobody took it.
    """

    bootstrap: str
    tables: dict[str, str]
    chunk_sets: dict[str, str]
    attached: list[str] = []
    check: int = 0
    version: int = VERSION
    fetched: list[str] = []
    diff_id: str = ""

    @property
    def digests(self) -> tuple[str, ...]:
        """All the files."""
        return (self.bootstrap, *self.tables.values(), *self.attached)


class KeptSignature(NamedTuple):
    """What was signed, and the signature."""

    payload: bytes
    signature: bytes


class SignaturesRecord(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """``signatures``: what proved a manifest, by its digest; proven again before it counts."""

    of_tag: tuple[KeptSignature, ...] = ()
    bundles: tuple[bytes, ...] = ()


class IndexRecord(msgspec.Struct, frozen=True):
    """``index``: the manifest of the index that was built of an image, by the image's digest.

    ``by_table`` says that it was built by tables of contents, without reading the layers.
    """

    digest: Annotated[str, msgspec.Meta(pattern=DIGEST)]
    by_table: bool = False


class LayersRecord(msgspec.Struct, frozen=True):
    """``layers``: the trees of an image's layers, by the digest of the manifest that was opened.

    ``trees`` has the digest of each by the layer's diff_id, ``hash_areas`` that of the hash tree of
    its disk, if one was made; ``check`` is as of ``image``.
    """

    trees: dict[
        Annotated[str, msgspec.Meta(pattern=DIGEST)], Annotated[str, msgspec.Meta(pattern=DIGEST)]
    ]
    check: int = 0
    hash_areas: dict[
        Annotated[str, msgspec.Meta(pattern=DIGEST)], Annotated[str, msgspec.Meta(pattern=DIGEST)]
    ] = {}


class LinkRecord(msgspec.Struct, frozen=True):
    """``link``: how a registry was reached, by the name of its host."""

    round_trip_s: float
    bytes_per_s: float


class ReleasesRecord(msgspec.Struct, frozen=True):
    """``releases``: the highest release of each tag that was used, by the name of a repository."""

    name: str
    releases: dict[str, int] = {}


class NameRecord(msgspec.Struct, frozen=True):
    """``name``: what a name meant when it was last opened, by the name, which is a reference.

    ``digest`` is that of the manifest or list of platforms that the name was; ``opened`` has, by
    the platform that was asked for (``""``: this machine's), the manifest that was opened, which
    the ``image`` record is about.
    """

    name: str
    digest: Annotated[str, msgspec.Meta(pattern=DIGEST)]
    opened: dict[str, str] = {}


class ResidentRecord(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """``resident``: an image that stays, by the reference that it was pulled by.

    ``blobs`` are the cache files that are never evicted, their names without an ending; ``digest``
    is what the reference means, once all is ``complete``, and ``accepted`` what a policy accepted.
    """

    name: str
    blobs: tuple[str, ...]
    digest: str | None = None
    accepted: str | None = None
    complete: bool = False


R = TypeVar("R", bound=msgspec.Struct)


class Kind(NamedTuple, Generic[R]):
    """A kind of record."""

    name: str
    type: type[R]
    is_of_manifest: bool
    """Whether it goes when the manifest does that it is about; others stay for ever."""
    can_be_remade: bool
    """Whether one that cannot be read counts as absent."""


IMAGE: Final = Kind("image", MetadataFiles, is_of_manifest=True, can_be_remade=True)
SIGNATURES: Final = Kind("signatures", SignaturesRecord, is_of_manifest=True, can_be_remade=True)
INDEX: Final = Kind("index", IndexRecord, is_of_manifest=True, can_be_remade=True)
LAYERS: Final = Kind("layers", LayersRecord, is_of_manifest=True, can_be_remade=True)
LINK: Final = Kind("link", LinkRecord, is_of_manifest=False, can_be_remade=True)
RELEASES: Final = Kind("releases", ReleasesRecord, is_of_manifest=False, can_be_remade=False)
NAME: Final = Kind("name", NameRecord, is_of_manifest=True, can_be_remade=True)
RESIDENT: Final = Kind("resident", ResidentRecord, is_of_manifest=False, can_be_remade=False)

KINDS: Final = (IMAGE, SIGNATURES, INDEX, LAYERS, LINK, RELEASES, NAME, RESIDENT)


class RecordError(StoreError):
    """A record that cannot be made anew is malformed, or was written by a later version."""


class Records:
    """The records of one store.  Threads and processes share it; the last to write wins."""

    def __init__(self, root: Path) -> None:
        """Use (and create) *root*, the folder of the records."""
        self.root = root

    def read(self, kind: Kind[R], key: str) -> R | None:
        """Return the record about *key*, a digest, or None if there is none that can be used.

        Raises RecordError for one that cannot be made anew, and StoreError.
        """
        path = self._path(kind, key)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise store_error(f"read {path}", error) from error
        content = data[_PREFIX_BYTES:]
        if data[:_PREFIX_BYTES] != _prefix(content):
            return None
        try:
            return decode_record(kind, content)
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            if kind.can_be_remade:
                return None
            raise RecordError(
                f"the record {path} cannot be used: {error}",
                hint=f"use the version of Lamina that wrote it, or remove {path}",
            ) from None

    def write(self, kind: Kind[R], key: str, record: R) -> None:
        """Keep a record about *key*, in place of an older one.  Raises StoreError."""
        path = self._path(kind, key)
        make_private_directory(self.root)
        make_private_directory(path.parent)
        content = encode_record(record)
        write_atomically(path, _prefix(content) + content)

    def each(self, kind: Kind[R]) -> Iterator[tuple[str, R]]:
        """Yield (key, record) of all that can be used; raises as :meth:`read`."""
        for key, _ in self.paths(kind.name):
            record = self.read(kind, key)
            if record is not None:
                yield key, record

    def paths(self, kind: str) -> list[tuple[str, Path]]:
        """Return (key, file) of all records of a kind.  Raises StoreError."""
        folder = self.root / kind
        with store_errors(f"list {folder}"):
            names = sorted(os.listdir(folder)) if folder.is_dir() else []
        keys = ((digest_of_file(name), folder / name) for name in names)
        return [(key, path) for key, path in keys if key is not None]

    def remove(self, kind: Kind[R], key: str) -> bool:
        """Remove a record; False if there was none.  Raises StoreError."""
        path = self._path(kind, key)
        try:
            path.unlink()
        except FileNotFoundError:
            return False
        except OSError as error:
            raise store_error(f"remove {path}", error) from error
        return True

    def touch(self, kind: Kind[R], key: str) -> None:
        """Note that what a record is about was used now; a record that is gone stays so."""
        with contextlib.suppress(OSError):
            os.utime(self._path(kind, key))

    def last_use_s(self, kind: Kind[R], key: str) -> float:
        """Return when :meth:`touch` or :meth:`write` was called last, in seconds since 1970; 0 for
        a record that is not there.
        """
        try:
            return self._path(kind, key).stat().st_mtime
        except OSError:
            return 0.0

    def resident(self, name: str) -> ResidentRecord | None:
        """Return what is known of the resident image that a name means; raises as :meth:`read`."""
        return self.read(RESIDENT, name_digest(name))

    def keep_resident(self, record: ResidentRecord) -> None:
        """Never evict or collect the blobs of an image.  Raises StoreError."""
        self.write(RESIDENT, name_digest(record.name), record)

    def release_resident(self, name: str) -> bool:
        """Undo :meth:`keep_resident`; False if there was nothing to undo.  Raises StoreError."""
        return self.remove(RESIDENT, name_digest(name))

    def residents(self) -> list[ResidentRecord]:
        """Return all resident images, by name; raises as :meth:`read`."""
        return sorted((record for _, record in self.each(RESIDENT)), key=lambda each: each.name)

    def resident_blobs(self) -> frozenset[str]:
        """Return the names, without endings, of the cache files that are kept for ever."""
        return frozenset(name for record in self.residents() for name in record.blobs)

    def _path(self, kind: Kind[R], key: str) -> Path:
        return self.root / kind.name / "-".join(split_digest(key))


class _Head(msgspec.Struct):
    version: int = VERSION


def encode_record(record: msgspec.Struct) -> bytes:
    """Return the content of a record."""
    if isinstance(record, IndexRecord) and not record.by_table:
        return record.digest.encode("ascii")
    return msgspec.json.encode(record)


def decode_record(kind: Kind[R], content: bytes) -> R:
    """Return what :func:`encode_record` made, of this or another version of Lamina.

    Raises MsgspecError for a later version or what is none of this kind, or UnicodeError.
    """
    if content.startswith(b"{"):
        version = msgspec.json.decode(content, type=_Head).version
        if version > VERSION:
            raise msgspec.ValidationError(
                f"it has version {version}, and this version of Lamina knows {VERSION}"
            )
    elif kind.type is IndexRecord:
        content = msgspec.json.encode({"digest": content.decode("ascii")})
    return msgspec.json.decode(content, type=kind.type)


def _prefix(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest().encode("ascii") + b"\n"
