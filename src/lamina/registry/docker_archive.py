"""Docker archives, as ``docker save`` and skopeo write them, seen as OCI images.

An archive has no manifest of its own: one is made up, with the layers as they lie there.  An
uncompressed layer has its diff_id as its digest, so nothing is hashed on opening; whoever reads a
layer to its end verifies it. Source: Docker image specification 1.2, "Combined Image JSON +
Filesystem Changeset Format".
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Final

import msgspec

from lamina.errors import FormatError, UsageError
from lamina.oci import json_document
from lamina.oci.manifest import (
    MAX_CONFIG_BYTES,
    MAX_LAYERS,
    MAX_MANIFEST_BYTES,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_LAYER_GZIP,
    OCI_LAYER_ZSTD,
    OCI_MANIFEST,
    REF_NAME,
    Descriptor,
    ImageIndex,
    Manifest,
    describe,
    encode,
    parse_config,
)
from lamina.oci.reference import Reference, full_name, is_digest
from lamina.registry.docker_archive_writer import DockerArchiveWriter
from lamina.registry.local import Extent, LocalRepository, open_extent, read_extent
from lamina.registry.repository import Repository
from lamina.registry.tar_members import TarMembers
from lamina.registry.verify import COPY_BYTES

_MANIFEST_FILE: Final = "manifest.json"
_MAX_IMAGES: Final = 1000
_MAGICS: Final = ((b"\x1f\x8b", OCI_LAYER_GZIP), (b"\x28\xb5\x2f\xfd", OCI_LAYER_ZSTD))


class _Item(msgspec.Struct, rename="pascal"):
    config: str
    repo_tags: list[str] | None = None
    layers: Annotated[list[str], msgspec.Meta(max_length=MAX_LAYERS)] | None = None


def open_docker_archive(reference: Reference, *, write: bool) -> Repository:
    """Open a docker archive for reading, or for replacing it when the repository is closed.

    Raises NotFoundError or FormatError for what cannot be read, StoreError for what cannot be
    written.
    """
    if write:
        return DockerArchiveWriter(reference)
    images = _DockerArchive(reference.path)
    try:
        images.load()
    except BaseException:
        images.close()
        raise
    return DockerArchiveRepository(reference, images)


class DockerArchiveRepository(LocalRepository):
    """A docker archive; its tags are whole docker references."""

    def resolve(self, version: str | None = None) -> Descriptor:
        """Return the manifest of a docker reference or digest; None: the reference's own, else the
        only one.
        """
        wanted = version if version is not None else self._reference.version
        if wanted is None or is_digest(wanted):
            return super().resolve(wanted)
        return super().resolve(full_name(wanted))


class _DockerArchive:
    def __init__(self, path: str) -> None:
        self._members = TarMembers(path)
        self._entries: list[Descriptor] = []
        self._blobs: dict[str, Extent] = {}

    def load(self) -> None:
        path = self._members.path
        data = self._members.read(_MANIFEST_FILE, MAX_MANIFEST_BYTES)
        what = f"{_MANIFEST_FILE} of {path}"
        items = json_document.load(data, what, MAX_MANIFEST_BYTES)
        if not isinstance(items, list):
            raise FormatError(f"the {what} is malformed: it is no array")
        if len(items) > _MAX_IMAGES:
            raise FormatError(f"{path} has more than {_MAX_IMAGES} images")
        for item in items:
            self._load_image(json_document.shape(item, _Item, what))

    def index(self) -> ImageIndex:
        return ImageIndex(schema_version=2, media_type=OCI_INDEX, manifests=tuple(self._entries))

    def extent(self, digest: str) -> Extent | None:
        return self._blobs.get(digest)

    def close(self) -> None:
        self._members.close()

    def _load_image(self, item: _Item) -> None:
        path = self._members.path
        raw = self._members.read(item.config, MAX_CONFIG_BYTES)
        diff_ids = parse_config(raw, f"configuration {item.config} of {path}").rootfs.diff_ids
        layers = item.layers or []
        if len(diff_ids) != len(layers):
            raise FormatError(
                f"{path}: {item.config} names {len(diff_ids)} layers, "
                f"{_MANIFEST_FILE} {len(layers)}"
            )
        manifest = Manifest(
            schema_version=2,
            media_type=OCI_MANIFEST,
            config=self._keep(OCI_CONFIG, raw),
            layers=tuple(map(self._layer, layers, diff_ids)),
        )
        descriptor = self._keep(OCI_MANIFEST, encode(manifest))
        if not item.repo_tags:
            self._entries.append(descriptor)
        for tag in item.repo_tags or ():
            try:
                name = full_name(tag)
            except UsageError as error:
                raise FormatError(f"{path} has a malformed tag: {error}") from None
            named = msgspec.structs.replace(descriptor, annotations={REF_NAME: name})
            self._entries.append(named)

    def _keep(self, media_type: str, data: bytes) -> Descriptor:
        descriptor = describe(media_type, data)
        self._blobs[descriptor.digest] = Extent(self._members.path, 0, len(data), data)
        return descriptor

    def _layer(self, name: str, diff_id: str) -> Descriptor:
        extent = self._members.extent(name)
        if extent is None:
            raise FormatError(f"the archive {self._members.path} has no layer {name}")
        head = read_extent(extent, 0, min(4, extent.size_bytes))
        media_type, digest = OCI_LAYER, diff_id
        for magic, compressed_type in _MAGICS:
            if head.startswith(magic):
                media_type, digest = compressed_type, _digest(extent)
        self._blobs[digest] = extent
        return Descriptor(media_type=media_type, digest=digest, size=extent.size_bytes)


def _digest(extent: Extent) -> str:
    hasher = hashlib.sha256()
    with open_extent(extent) as stream:
        while data := stream.read(COPY_BYTES):
            hasher.update(data)
    return f"sha256:{hasher.hexdigest()}"
