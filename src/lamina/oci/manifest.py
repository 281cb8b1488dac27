"""OCI and Docker manifests, indexes and image configurations as typed values.

What: parse bytes that may be hostile into msgspec structs, and encode structs
deterministically.  Fields that Lamina does not know are ignored here; whoever copies an image
copies the bytes, and whoever edits a configuration edits :func:`parse_document`'s
dictionary.  Sources: OCI image specification 1.1; Docker image manifest version 2 schema 2;
annotations of Nydus images: RAFS v6 §6.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, Final, cast

import msgspec

from lamina.errors import FormatError, UnsupportedError
from lamina.oci import json_document
from lamina.oci.reference import DIGEST_PATTERN

OCI_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX: Final = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
OCI_EMPTY: Final = "application/vnd.oci.empty.v1+json"
EMPTY: Final = b"{}"
"""The content of that media type."""
OCI_LAYER: Final = "application/vnd.oci.image.layer.v1.tar"
OCI_LAYER_GZIP: Final = "application/vnd.oci.image.layer.v1.tar+gzip"
ENCRYPTED_SUFFIX: Final = "+encrypted"
"""Of a layer that ocicrypt encrypted: the rest is the media type of its plaintext."""
OCI_LAYER_ZSTD: Final = "application/vnd.oci.image.layer.v1.tar+zstd"
DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_INDEX: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG: Final = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER: Final = "application/vnd.docker.image.rootfs.diff.tar"
DOCKER_LAYER_GZIP: Final = "application/vnd.docker.image.rootfs.diff.tar.gzip"
DOCKER_LAYER_ZSTD: Final = "application/vnd.docker.image.rootfs.diff.tar.zstd"
NYDUS_BLOB: Final = "application/vnd.oci.image.layer.nydus.blob.v1"
NYDUS_CONFIG: Final = "application/vnd.nydus.image.config.v1+json"
NYDUS_MANIFEST_ARTIFACT: Final = "application/vnd.nydus.image.manifest.v1+json"
NYDUS_OS_FEATURE: Final = "nydus.remoteimage.v1"
SEALED_BLOB: Final = "application/vnd.oci.image.layer.lamina.sealed.blob.v1"
SEALED_LEAVES: Final = "application/vnd.oci.image.layer.lamina.sealed.leaves.v1"
SEALED_BLOBS: Final = (SEALED_BLOB, "application/vnd.lamina.sealed.blob.v1")
"""Also as it was before containerd was to pull sealed images: what it counts as a layer begins so
(``images.IsLayerType``).
"""
SEALED_LEAF_TABLES: Final = (SEALED_LEAVES, "application/vnd.lamina.sealed.leaves.v1")
SEALED_ARTIFACT: Final = "application/vnd.lamina.sealed.image.v1+json"

MANIFEST_TYPES: Final = (OCI_MANIFEST, DOCKER_MANIFEST)
INDEX_TYPES: Final = (OCI_INDEX, DOCKER_INDEX)
CONFIG_TYPES: Final = (OCI_CONFIG, DOCKER_CONFIG, NYDUS_CONFIG)
SCHEMA1_TYPES: Final = (
    "application/vnd.docker.distribution.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v1+prettyjws",
)

REF_NAME: Final = "org.opencontainers.image.ref.name"
NYDUS_BLOB_MARK: Final = "containerd.io/snapshot/nydus-blob"
NYDUS_BOOTSTRAP_MARK: Final = "containerd.io/snapshot/nydus-bootstrap"
NYDUS_FS_VERSION: Final = "containerd.io/snapshot/nydus-fs-version"
NYDUS_REF: Final = "containerd.io/snapshot/nydus-ref"
NYDUS_SOURCE_DIGEST: Final = "containerd.io/snapshot/nydus-source-digest"
NYDUS_BUILDER_VERSION: Final = "containerd.io/snapshot/nydus-builder-version"
INDEX_TABLE_HEAD: Final = "dev.lamina.index.table.head"
"""How many bytes of the chunk table of an indexed layer are needed before anything is read."""
SEALED_SUITE: Final = "dev.lamina.sealed.suite"
"""Annotation of a sealed image and of its metadata layer: the suite it is sealed with."""
SEALED_PIECES: Final = "dev.lamina.sealed.pieces"
SEALED_ROOT: Final = "dev.lamina.sealed.root"
SEALED_CLASS: Final = "dev.lamina.sealed.class"
"""Annotation of a sealed blob that is not of the private class: ``tenant`` or ``public``."""

MAX_MANIFEST_BYTES: Final = 4 << 20
MAX_CONFIG_BYTES: Final = 16 << 20
MAX_MANIFESTS: Final = 1 << 14
"""Entries of an index; layout folders list all their images in one."""
MAX_LAYERS: Final = 1 << 10
"""Overlay file systems stack 500; nobody runs an image of more."""
_DECISIVE: Final = ("schemaversion", "mediatype", "manifests", "layers", "config", "fslayers")
"""Folded names of the fields that tell what a document is."""
_MAX_HISTORY: Final = 1 << 12
_MAX_ANNOTATIONS: Final = 1 << 12

Digest = Annotated[str, msgspec.Meta(pattern=rf"\A{DIGEST_PATTERN}\Z")]
Size = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
Annotations = Annotated[dict[str, str], msgspec.Meta(max_length=_MAX_ANNOTATIONS)]


class Platform(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """The machine an image is for (OCI image index, ``platform``); empty where nobody said."""

    architecture: str = ""
    os: str = ""
    variant: str = ""
    os_version: str = msgspec.field(name="os.version", default="")
    os_features: tuple[str, ...] = msgspec.field(name="os.features", default=())

    def __str__(self) -> str:
        return f"{self.os}/{self.architecture}" + (f"/{self.variant}" if self.variant else "")


class Descriptor(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True, rename="camel"):
    """A typed, sized, digested pointer to content (OCI descriptor)."""

    media_type: str
    digest: Digest
    size: Size
    annotations: Annotations = {}
    platform: Platform | None = None
    artifact_type: str = ""
    urls: tuple[str, ...] = ()
    data: str = ""

    @property
    def is_index(self) -> bool:
        """Whether it points to an index (or Docker manifest list)."""
        return self.media_type in INDEX_TYPES

    @property
    def is_manifest(self) -> bool:
        """Whether it points to an image manifest."""
        return self.media_type in MANIFEST_TYPES

    @property
    def hex(self) -> str:
        """The digest without its algorithm."""
        return self.digest.partition(":")[2]


def _no_descriptors() -> tuple[Descriptor, ...]:
    # A factory of our own keeps msgspec from leaving the empty list out, which Go tools want to
    # see.
    return ()


class _Document(msgspec.Struct, dict=True):
    @property
    def raw(self) -> bytes:
        """The bytes this was parsed from; of a value made in code, its encoding."""
        raw = self.__dict__.get("raw_bytes")
        return encode(self) if raw is None else cast("bytes", raw)


class Manifest(_Document, kw_only=True, omit_defaults=True, rename="camel", dict=True):
    """An image manifest: one configuration and the layers, lowest first."""

    schema_version: int
    media_type: str = ""
    artifact_type: str = ""
    config: Descriptor
    layers: Annotated[tuple[Descriptor, ...], msgspec.Meta(max_length=MAX_LAYERS)] = msgspec.field(
        default_factory=_no_descriptors
    )
    subject: Descriptor | None = None
    annotations: Annotations = {}

    @property
    def is_nydus(self) -> bool:
        """Whether the last layer is a RAFS bootstrap (RAFS v6 §6.2)."""
        return bool(self.layers) and NYDUS_BOOTSTRAP_MARK in self.layers[-1].annotations

    @property
    def is_encrypted(self) -> bool:
        """Whether it is an ordinary image with layers that were encrypted whole (ocicrypt)."""
        layers = () if self.is_sealed else self.layers
        return any(layer.media_type.endswith(ENCRYPTED_SUFFIX) for layer in layers)

    @property
    def is_sealed(self) -> bool:
        """Whether it is an image whose data Lamina encrypted piece by piece."""
        return bool(self.layers) and SEALED_SUITE in self.layers[-1].annotations


class ImageIndex(_Document, kw_only=True, omit_defaults=True, rename="camel", dict=True):
    """An image index: descriptors of manifests (or of further indexes).

    Of one that was parsed, ``unreadable`` says what is wrong with entries that Lamina cannot use,
    of another digest algorithm for instance: they are left out, and matter to nobody who wants
    another one.
    """

    schema_version: int
    media_type: str = ""
    artifact_type: str = ""
    manifests: tuple[Descriptor, ...] = msgspec.field(default_factory=_no_descriptors)
    subject: Descriptor | None = None
    annotations: Annotations = {}

    @property
    def unreadable(self) -> tuple[str, ...]:
        """One sentence for each entry that was left out."""
        return cast("tuple[str, ...]", self.__dict__.get("unreadable_entries", ()))


class RuntimeConfig(msgspec.Struct, kw_only=True, omit_defaults=True, rename="pascal"):
    """What a container of the image runs (``config`` of the image configuration)."""

    user: str = ""
    env: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    working_dir: str = ""
    exposed_ports: dict[str, Any] = {}
    volumes: dict[str, Any] = {}
    labels: dict[str, str] = {}
    stop_signal: str = ""


class RootFS(msgspec.Struct, kw_only=True):
    """The digests of the uncompressed layers, lowest first."""

    type: str = "layers"
    diff_ids: Annotated[tuple[Digest, ...], msgspec.Meta(max_length=MAX_LAYERS)] = ()


class History(msgspec.Struct, kw_only=True, omit_defaults=True):
    """How one layer came to be."""

    created: str = ""
    created_by: str = ""
    author: str = ""
    comment: str = ""
    empty_layer: bool = False


class ImageConfig(_Document, kw_only=True, omit_defaults=True, dict=True):
    """The image configuration: platform, what to run, layer digests, history."""

    architecture: str = ""
    os: str = ""
    variant: str = ""
    os_version: str = msgspec.field(name="os.version", default="")
    os_features: tuple[str, ...] = msgspec.field(name="os.features", default=())
    created: str = ""
    author: str = ""
    config: RuntimeConfig = msgspec.field(default_factory=RuntimeConfig)
    rootfs: RootFS = msgspec.field(default_factory=RootFS)
    history: Annotated[tuple[History, ...], msgspec.Meta(max_length=_MAX_HISTORY)] = ()

    @property
    def platform(self) -> Platform:
        """The platform that the configuration names."""
        return Platform(
            architecture=self.architecture,
            os=self.os,
            variant=self.variant,
            os_version=self.os_version,
            os_features=self.os_features,
        )


def describe(media_type: str, data: bytes, annotations: Annotations | None = None) -> Descriptor:
    """Return the descriptor of some bytes (sha256)."""
    return Descriptor(
        media_type=media_type,
        digest="sha256:" + hashlib.sha256(data).hexdigest(),
        size=len(data),
        annotations=annotations or {},
    )


def encode(document: msgspec.Struct | dict[str, Any] | list[dict[str, Any]]) -> bytes:
    """Encode as compact JSON; the same value always gives the same bytes."""
    return msgspec.json.encode(document)


def parse_manifest(data: bytes, what: str = "manifest") -> Manifest | ImageIndex:
    """Parse an image manifest or index, OCI or Docker schema 2; ``what`` names it in errors.

    Raises FormatError if it is neither or both (CVE-2021-41190), UnsupportedError for Docker schema
    1.
    """
    value = json_document.load_object(data, what, MAX_MANIFEST_BYTES)
    if _media_type(value, what) in INDEX_TYPES:
        return _index(value, data, what)
    manifest = json_document.shape(value, Manifest, what)
    manifest.__dict__["raw_bytes"] = data
    return manifest


def parse_index(data: bytes, what: str = "index") -> ImageIndex:
    """Parse an index; FormatError if it is something else.

    One without ``manifests`` is empty, as some tools write it.
    """
    value = json_document.load_object(data, what, MAX_MANIFEST_BYTES)
    if _media_type(value, what, default=OCI_INDEX) not in INDEX_TYPES:
        raise FormatError(f"the {what} is an image manifest where an index must be")
    return _index(value, data, what)


def parse_image_manifest(data: bytes, what: str = "manifest") -> Manifest:
    """Parse an image manifest; FormatError if it is an index."""
    document = parse_manifest(data, what)
    if not isinstance(document, Manifest):
        raise FormatError(f"the {what} is an index where an image manifest must be")
    return document


def parse_config(data: bytes, what: str = "image configuration") -> ImageConfig:
    """Parse an image configuration of OCI or Docker; at most 16 MiB."""
    value = json_document.load_object(data, what, MAX_CONFIG_BYTES)
    config = json_document.shape(value, ImageConfig, what)
    config.__dict__["raw_bytes"] = data
    return config


def parse_document(
    data: bytes, what: str = "document", kind: type[msgspec.Struct] | None = None
) -> dict[str, Any]:
    """Parse any JSON object, every field kept: for edits that must not lose what Lamina does not
    know.  The fields of ``kind`` have the names that it gives them.
    """
    value = json_document.load_object(data, what, MAX_CONFIG_BYTES)
    return value if kind is None else json_document.spelled(value, kind, what)


def detect_media_type(data: bytes, what: str = "manifest") -> str:
    """Return the media type of a manifest or index: what it claims, checked against what it has in
    it.

    Raises FormatError for contradictions, UnsupportedError for Docker schema 1.
    """
    return _media_type(json_document.load_object(data, what, MAX_MANIFEST_BYTES), what)


def _media_type(value: dict[str, Any], what: str, *, default: str = "") -> str:
    """Do as :func:`detect_media_type`; ``default`` is that of a document with nothing in it."""
    shape = json_document.folded(value, _DECISIVE, what)
    version, claimed = shape.get("schemaversion"), shape.get("mediatype") or ""
    if version == 1 or shape.get("fslayers") is not None:
        raise UnsupportedError(
            f"the {what} is a Docker schema 1 manifest, which has no verifiable layers",
            hint="push the image again with a docker or skopeo of this decade",
        )
    if type(version) is not int or version != 2:
        raise FormatError(f"the {what} is malformed: it has schemaVersion {version!r:.40}, not 2")
    has_index = shape.get("manifests") is not None
    has_image = shape.get("layers") is not None or shape.get("config") is not None
    if has_index and has_image:
        raise FormatError(f"the {what} is both an index and an image manifest")
    found = OCI_INDEX if has_index else OCI_MANIFEST if has_image else _empty_kind(shape, default)
    if not found:
        raise FormatError(f"the {what} is neither index nor image")
    if not claimed:
        return found
    if claimed not in (INDEX_TYPES if found == OCI_INDEX else MANIFEST_TYPES):
        raise FormatError(f"the {what} has the media type {claimed!r:.200}, not what it holds")
    return str(claimed)


def _empty_kind(shape: dict[str, Any], default: str) -> str:
    """Return what a document is that holds nothing: Go writes a list of no manifests as null."""
    if shape.keys() & {"layers", "config"}:
        return ""
    if "manifests" in shape or shape.get("mediatype") in INDEX_TYPES:
        return OCI_INDEX
    return default


def _index(value: dict[str, Any], data: bytes, what: str) -> ImageIndex:
    document = json_document.spelled(value, ImageIndex, what)
    entries = document.pop("manifests", None)
    if not isinstance(entries, list | None):
        raise FormatError(f"the {what} is malformed: its manifests are no array")
    if entries and len(entries) > MAX_MANIFESTS:
        raise FormatError(f"the {what} lists {len(entries)} manifests, more than {MAX_MANIFESTS}")
    index = json_document.shape(document, ImageIndex, what)
    found, unreadable = [], []
    for number, entry in enumerate(entries or ()):
        try:
            found.append(json_document.shape(entry, Descriptor, f"entry {number} of the {what}"))
        except FormatError as error:
            unreadable.append(str(error))
    index.manifests = tuple(found)
    index.__dict__["raw_bytes"] = data
    index.__dict__["unreadable_entries"] = tuple(unreadable)
    return index
