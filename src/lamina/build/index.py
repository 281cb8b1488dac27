"""Index an ordinary image: lazy start without a second copy of its data (RAFS v6 §6.5-6.6, §7).

What is pushed beside the image is a small table for each layer and the merged tree; the data stays
in the layers.  The index names the image by ``subject``, so that it is found from there.
"""

from __future__ import annotations

import io
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lamina.build.index_build import IndexOptions, build_from_layers
from lamina.build.index_table import IndexBlob
from lamina.errors import NotFoundError, UsageError
from lamina.registry.manifest import (
    INDEX_TABLE_HEAD,
    NYDUS_FS_VERSION,
    NYDUS_MANIFEST_ARTIFACT,
    NYDUS_REF,
    NYDUS_SOURCE_DIGEST,
    OCI_CONFIG,
    OCI_MANIFEST,
    Descriptor,
    Index,
    Manifest,
    describe,
    parse_config,
    parse_manifest,
)
from lamina.registry.platform import is_wanted, parse_platform
from lamina.registry.reference import Reference
from lamina.registry.referrers import push_referrer
from lamina.registry.repository import ClientOptions, Repository, open_repository
from lamina.registry.resolve import (
    Found,
    RepositoryDocuments,
    check_layers,
    find_ordinary,
    read_config,
)

if TYPE_CHECKING:
    from lamina.build.index_merge import BuiltIndex

__all__ = ["IndexOptions", "IndexReport", "build_index", "index_image", "index_manifest"]


@dataclass(frozen=True, slots=True)
class IndexReport:
    """The result: the digest of the index, what it indexes, and sizes in bytes; ``by_table`` and
    ``table_problem`` as in :class:`lamina.build.index_merge.BuiltIndex`.
    """

    platform: str
    digest: str
    source_digest: str
    layer_bytes: int
    table_bytes: tuple[int, ...]
    bootstrap_layer_bytes: int
    by_table: bool
    table_problem: str
    elapsed_s: float

    @property
    def index_bytes(self) -> int:
        """Bytes of the index as pushed, without its manifest and configuration."""
        return sum(self.table_bytes) + self.bootstrap_layer_bytes


def index_image(
    reference: Reference,
    options: IndexOptions | None = None,
    *,
    client: ClientOptions | None = None,
    tag: str | None = None,
) -> list[IndexReport]:
    """Index the image that ``reference`` names, every wanted platform of it, and attach the indexes
    there.

    With ``tag`` the index also gets that tag.  Call it before the process starts threads.

    Raises UsageError for a native image, impossible options, or one tag for several indexes;
    NotFoundError for a platform that is not there, and what reading the layers and pushing raises.
    """
    options = options or IndexOptions()
    options.check()
    with open_repository(reference, write=True, options=client) as repository:
        chosen = _chosen(repository, options)
        if tag is not None and len(chosen) > 1:
            raise UsageError(
                f"{reference} has {len(chosen)} platforms, whose indexes cannot share a tag",
                hint="Choose one with --platform.",
            )
        return [
            build_index(
                repository,
                descriptor,
                manifest,
                read_config(repository, manifest).raw,
                options,
                client=client,
                tag=tag,
            )
            for descriptor, manifest in chosen
        ]


def build_index(
    repository: Repository,
    source: Descriptor,
    manifest: Manifest,
    config: bytes,
    options: IndexOptions | None = None,
    *,
    client: ClientOptions | None = None,
    tag: str | None = None,
) -> IndexReport:
    """Index one image and attach the index to it in ``repository``, which must be open for writing.

    ``source`` describes ``manifest``; the rest is as for :func:`index_image`.
    """
    start = time.perf_counter()
    options = options or IndexOptions()
    refuse_native(manifest)
    parsed = parse_config(config)
    check_layers(manifest, parsed, str(repository.reference))
    built = build_from_layers(repository, manifest.layers, options, client, parsed.rootfs.diff_ids)
    pushed = _attach(repository, source, config, built, tag)
    return IndexReport(
        platform=str(parsed.platform),
        digest=pushed.digest,
        source_digest=source.digest,
        layer_bytes=sum(layer.size for layer in manifest.layers),
        table_bytes=tuple(len(blob.data) for blob in built.blobs),
        bootstrap_layer_bytes=len(built.last.data),
        by_table=built.by_table,
        table_problem=built.table_problem,
        elapsed_s=time.perf_counter() - start,
    )


def refuse_native(manifest: Manifest) -> None:
    """Raise UsageError for what has no layers of its own to index."""
    if manifest.is_nydus:
        raise UsageError("The image is a native image or an index already.")
    if manifest.is_sealed:
        raise UsageError("The image is sealed, so it is lazy already.")


def index_manifest(
    source: Descriptor, config: bytes, built: BuiltIndex
) -> tuple[Manifest, bytes, list[Descriptor]]:
    """Return (manifest, configuration, descriptors of the tables) of an index."""
    from lamina.build.package import FS_VERSION, blob_descriptor, converted_config

    tables = []
    for blob in built.blobs:
        plain = blob_descriptor(blob.entry.meta_digest.hex(), len(blob.data))
        tables.append(
            Descriptor(
                media_type=plain.media_type,
                digest=plain.digest,
                size=plain.size,
                annotations={**plain.annotations, **_annotations(blob)},
            )
        )
    new_config = converted_config(config, tables, built.last.diff_id)
    manifest = Manifest(
        schema_version=2,
        media_type=OCI_MANIFEST,
        artifact_type=NYDUS_MANIFEST_ARTIFACT,
        config=describe(OCI_CONFIG, new_config),
        layers=(*tables, built.last.descriptor),
        subject=Descriptor(media_type=source.media_type, digest=source.digest, size=source.size),
        annotations={NYDUS_FS_VERSION: FS_VERSION, NYDUS_SOURCE_DIGEST: source.digest},
    )
    return manifest, new_config, tables


def _annotations(blob: IndexBlob) -> dict[str, str]:
    found = {NYDUS_REF: f"sha256:{blob.entry.blob_id}"}
    if blob.head_size:
        found[INDEX_TABLE_HEAD] = str(blob.head_size)
    return found


def _attach(
    repository: Repository, source: Descriptor, config: bytes, built: BuiltIndex, tag: str | None
) -> Descriptor:
    manifest, new_config, tables = index_manifest(source, config, built)
    for table, blob in zip(tables, built.blobs, strict=True):
        repository.push_blob(table, io.BytesIO(blob.data))
    repository.push_blob(built.last.descriptor, io.BytesIO(built.last.data))
    repository.push_blob(manifest.config, io.BytesIO(new_config))
    return push_referrer(repository, manifest, tag=tag)


def _chosen(repository: Repository, options: IndexOptions) -> list[Found]:
    """Return the manifests of the wanted platforms, with their descriptors."""
    wanted = [parse_platform(text) for text in options.platforms]
    descriptor, data = repository.manifest()
    where = str(repository.reference)
    document = parse_manifest(data, f"manifest of {where}")
    if isinstance(document, Index):
        return find_ordinary(document, RepositoryDocuments(repository), wanted, where)
    refuse_native(document)
    platform = read_config(repository, document).platform
    if not is_wanted(platform, wanted):
        raise NotFoundError(f"{where} is an image for {platform}.")
    return [Found(descriptor, document)]
