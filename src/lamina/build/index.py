"""Index an ordinary image: lazy start without a second copy of its data (RAFS v6 §6.5-6.6, §7).

What is pushed beside the image is a small table for each layer and the merged tree; the data stays
in the layers.  The index names the image by ``subject``, so that it is found from there.
"""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from msgspec.structs import replace

from lamina.build.index_build import IndexOptions, build_from_layers
from lamina.build.index_table import IndexBlob
from lamina.errors import NotFoundError, UsageError
from lamina.http.client_options import ClientOptions
from lamina.oci.layers_manifest import layers_annotation, layers_manifest, tree_name
from lamina.oci.manifest import (
    EMPTY,
    INDEX_TABLE_HEAD,
    NYDUS_FS_VERSION,
    NYDUS_MANIFEST_ARTIFACT,
    NYDUS_REF,
    NYDUS_SOURCE_DIGEST,
    OCI_CONFIG,
    OCI_MANIFEST,
    Descriptor,
    Manifest,
    describe,
    parse_config,
)
from lamina.oci.platform import is_wanted, parse_platform
from lamina.oci.reference import Reference
from lamina.registry.open_repository import open_for_attaching
from lamina.registry.referrers import push_referrer
from lamina.registry.repository import Repository
from lamina.registry.resolve import (
    Found,
    check_layers,
    read_config,
    read_ordinary,
)

if TYPE_CHECKING:
    from lamina.build.index_merge import BuiltIndex
    from lamina.build.package import BootstrapLayer

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
    layer_trees_bytes: int
    by_table: bool
    table_problem: str
    elapsed_s: float

    @property
    def index_bytes(self) -> int:
        """Return the bytes of the index as pushed, without its manifest and configuration."""
        return sum(self.table_bytes) + self.bootstrap_layer_bytes + self.layer_trees_bytes


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
    with open_for_attaching(reference, options=client) as repository:
        chosen = _chosen(repository, options)
        if tag is not None and len(chosen) > 1:
            raise UsageError(
                f"{reference} has {len(chosen)} platforms, whose indexes cannot share a tag",
                hint="choose one with --platform",
            )
        _check_tag(reference, tag)
        if options.sized is not None:
            options.sized(sum(layer.size for _, image in chosen for layer in image.layers))
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


def _check_tag(reference: Reference, tag: str | None) -> None:
    """Refuse a tag with which the reference would not mean the image any more."""
    if tag is None or reference.digest is not None:
        return
    if reference.tag is None:
        raise UsageError(
            f"{reference} means the only image there, and with the tag {tag!r} there would be two",
            hint=f"say which image it is: {reference}:TAG",
        )
    if tag == reference.tag:
        raise UsageError(
            f"{reference} would not mean the image any more, but its index",
            hint="leave --tag out: the index is found without one",
        )


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
    refuse_unfit(manifest)
    parsed = parse_config(config)
    check_layers(manifest, parsed, str(repository.reference))
    built = build_from_layers(repository, manifest.layers, options, client, parsed.rootfs.diff_ids)
    trees = _layer_trees(built, parsed.rootfs.diff_ids) if options.layer_trees else None
    pushed = _attach(repository, source, config, built, tag, trees)
    return IndexReport(
        platform=str(parsed.platform) if parsed.architecture else "",
        digest=pushed.digest,
        source_digest=source.digest,
        layer_bytes=sum(layer.size for layer in manifest.layers),
        table_bytes=tuple(len(blob.data) for blob in built.blobs),
        bootstrap_layer_bytes=len(built.last.data),
        layer_trees_bytes=0 if trees is None else len(trees.data),
        by_table=built.by_table,
        table_problem=built.table_problem,
        elapsed_s=time.perf_counter() - start,
    )


def refuse_native(manifest: Manifest) -> None:
    """Raise UsageError for what has no layers of its own to index."""
    if manifest.is_nydus:
        raise UsageError("the image is a native image or an index already")
    if manifest.is_sealed:
        raise UsageError("the image is sealed, so it is lazy already")


def refuse_unfit(manifest: Manifest) -> None:
    """Raise UsageError for what has no layers of its own to index, or encrypted ones."""
    refuse_native(manifest)
    if manifest.is_encrypted:
        raise UsageError(
            "the image is encrypted, and an index beside it would show names and parts of files",
            hint="convert --seal --decryption-key FILE makes an image that is encrypted and lazy; "
            "run and mount index it on the node: --index always --decryption-key FILE",
        )


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


def _layer_trees(built: BuiltIndex, diff_ids: Sequence[str]) -> BootstrapLayer:
    from lamina.build.package import metadata_layer

    trees = zip(diff_ids, built.layer_trees, strict=True)
    # An image may have one layer twice.
    return metadata_layer(list({tree_name(layer): tree for layer, tree in trees}.items()), {})


def _attach(
    repository: Repository,
    source: Descriptor,
    config: bytes,
    built: BuiltIndex,
    tag: str | None,
    trees: BootstrapLayer | None,
) -> Descriptor:
    manifest, new_config, tables = index_manifest(source, config, built)
    if trees is not None:
        manifest = replace(
            manifest, annotations={**manifest.annotations, **layers_annotation(trees.descriptor)}
        )
        attached = layers_manifest(source, trees.descriptor)
        repository.push_blob(trees.descriptor, io.BytesIO(trees.data))
        repository.push_blob(attached.config, io.BytesIO(EMPTY))
        push_referrer(repository, attached)
    for table, blob in zip(tables, built.blobs, strict=True):
        repository.push_blob(table, io.BytesIO(blob.data))
    repository.push_blob(built.last.descriptor, io.BytesIO(built.last.data))
    repository.push_blob(manifest.config, io.BytesIO(new_config))
    return push_referrer(repository, manifest, tag=tag)


def _chosen(repository: Repository, options: IndexOptions) -> list[Found]:
    """Return the manifests of the wanted platforms, with their descriptors."""
    wanted = [parse_platform(text) for text in options.platforms]
    index, chosen = read_ordinary(repository, wanted)
    if index is not None:
        return chosen
    (found,) = chosen
    refuse_unfit(found.manifest)
    platform = read_config(repository, found.manifest).platform
    if not is_wanted(platform, wanted):
        raise NotFoundError(f"{repository.reference} is an image for {platform}")
    return chosen
