"""Index an ordinary image: lazy start without a second copy of its data (RAFS v6 §6.5-6.6, §7).

Every layer is read once by a process of its own.  What is pushed beside the image is a small table
for each layer and the merged tree; the data stays in the layers.  The index names the image by
``subject``, and an index of referrers under the fallback tag names the index (OCI distribution
specification 1.1, "Referrers Tag Schema").
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lamina.build.index_layer import IndexedLayer, index_layer
from lamina.build.index_table import IndexBlob, index_blob
from lamina.build.layer_blob import with_blob_index
from lamina.build.layer_tree import apply_layer
from lamina.build.merge import MergedTree
from lamina.build.package import FS_VERSION, blob_descriptor, bootstrap_layer, converted_config
from lamina.build.plan import KnownChunks, LayerPlan, encode_references, plan_layer
from lamina.build.workers import Workers
from lamina.codec.compress import Compressor
from lamina.codec.digest import Digester
from lamina.erofs.writer import BootstrapOptions, write_bootstrap
from lamina.errors import NotFoundError, UsageError
from lamina.image.indexed import fallback_tag
from lamina.registry.manifest import (
    NYDUS_FS_VERSION,
    NYDUS_MANIFEST_ARTIFACT,
    NYDUS_REF,
    NYDUS_SOURCE_DIGEST,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    Index,
    Manifest,
    describe,
    encode,
    parse_index,
)
from lamina.registry.repository import ClientOptions, Repository, open_repository

__all__ = ["IndexOptions", "IndexReport", "build_index", "fallback_tag"]

DEFAULT_CHUNK_SIZE = 128 << 10
DEFAULT_SPACING_BYTES = 256 << 10


@dataclass(frozen=True, slots=True)
class IndexOptions:
    """How an image is indexed.

    ``chunk_size`` is the unit of verification, ``spacing_bytes`` the least distance of two access
    points in a gzip layer, in compressed bytes: what is fetched at least for a small file.
    """

    chunk_size: int = DEFAULT_CHUNK_SIZE
    spacing_bytes: int = DEFAULT_SPACING_BYTES
    digester: Digester = Digester.SHA256
    jobs: int = 0


@dataclass(frozen=True, slots=True)
class IndexReport:
    """The result: the digest of the index, what it indexes, and sizes in bytes."""

    digest: str
    source_digest: str
    layer_bytes: int
    table_bytes: tuple[int, ...]
    bootstrap_layer_bytes: int
    elapsed_s: float

    @property
    def index_bytes(self) -> int:
        """Bytes of the index as pushed, without its manifest and configuration."""
        return sum(self.table_bytes) + self.bootstrap_layer_bytes


@dataclass(slots=True)
class _Job:
    repository: Repository
    client: ClientOptions | None
    layers: Sequence[Descriptor]
    options: IndexOptions


_job: _Job


def _set_up(job: _Job) -> None:
    global _job  # noqa: PLW0603 - a worker has one job
    _job = job
    if job.repository.reference.transport == "docker":
        job.repository = open_repository(job.repository.reference, options=job.client)


def _index(number: int) -> IndexedLayer:
    options = _job.options
    # fmt: off
    return index_layer(_job.repository, _job.layers[number], options.chunk_size,
                       options.spacing_bytes, options.digester)
    # fmt: on


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
    """Index an image and attach the index to it in ``repository``, which must be open for writing.

    ``source`` describes ``manifest``; ``client`` is what the repository was opened with.  The index
    also gets ``tag``, if one is given.

    Raises UsageError for a native image, UnsupportedError for a layer that cannot be entered but at
    its begin, and what reading the layers and pushing raises.
    """
    start = time.perf_counter()
    options = options or IndexOptions()
    if manifest.is_nydus:
        raise UsageError("The image is a native image or an index already.")
    layers, tree, plans = _read_layers(_Job(repository, client, manifest.layers, options))
    devices = [number for number, plan in enumerate(plans) if plan.chunk_count]
    blobs = [
        index_blob(manifest.layers[number].hex, layers[number], plans[number], *_kind(options))
        for number in devices
    ]
    table = b"".join(with_blob_index(b.chunk_entries, i) for i, b in enumerate(blobs))
    bootstrap = write_bootstrap(
        tree.root,
        [blob.entry for blob in blobs],
        table,
        BootstrapOptions(options.chunk_size, Compressor.GZIP, options.digester),
    )
    last = bootstrap_layer(bootstrap, ())
    pushed = _push(repository, source, config, (blobs, last), tag)
    return IndexReport(
        digest=pushed.digest,
        source_digest=source.digest,
        layer_bytes=sum(layer.size for layer in manifest.layers),
        table_bytes=tuple(len(blob.data) for blob in blobs),
        bootstrap_layer_bytes=len(last.data),
        elapsed_s=time.perf_counter() - start,
    )


def _kind(options: IndexOptions) -> tuple[int, Digester]:
    return options.chunk_size, options.digester


def _read_layers(job: _Job) -> tuple[list[IndexedLayer], MergedTree, list[LayerPlan]]:
    """Read all layers at once, and merge their trees in order."""
    tree, known = MergedTree(), KnownChunks()
    layers: list[IndexedLayer] = []
    plans: list[LayerPlan] = []
    jobs = job.options.jobs or len(os.sched_getaffinity(0))
    with Workers(jobs, _set_up, job) as workers:
        futures = [workers.submit(_index, number) for number in range(len(job.layers))]
        workers.no_more()
        for number, future in enumerate(futures):
            layer = future.result()
            plan = plan_layer(number, layer.scan, known, 0)
            layers.append(layer)
            plans.append(plan)
            with_data = [n for n, other in enumerate(plans) if other.chunk_count]
            numbers = {owner: index for index, owner in enumerate(with_data)}
            indexes = encode_references(plan.references, plans, numbers)
            apply_layer(tree, layer.scan, indexes, lambda node: node)
    return layers, tree, plans


def _push(
    repository: Repository,
    source: Descriptor,
    config: bytes,
    parts: tuple[Sequence[IndexBlob], Any],
    tag: str | None,
) -> Descriptor:
    blobs, last = parts
    descriptors = []
    for blob in blobs:
        descriptor = blob_descriptor(blob.entry.meta_digest.hex(), len(blob.data))
        annotations = {**descriptor.annotations, NYDUS_REF: f"sha256:{blob.entry.blob_id}"}
        descriptors.append(
            Descriptor(
                media_type=descriptor.media_type,
                digest=descriptor.digest,
                size=descriptor.size,
                annotations=annotations,
            )
        )
        repository.push_blob(descriptors[-1], io.BytesIO(blob.data))
    new_config = converted_config(config, descriptors, last.diff_id)
    described = describe(OCI_CONFIG, new_config)
    repository.push_blob(last.descriptor, io.BytesIO(last.data))
    repository.push_blob(described, io.BytesIO(new_config))
    manifest = Manifest(
        schema_version=2,
        media_type=OCI_MANIFEST,
        artifact_type=NYDUS_MANIFEST_ARTIFACT,
        config=described,
        layers=(*descriptors, last.descriptor),
        subject=Descriptor(media_type=source.media_type, digest=source.digest, size=source.size),
        annotations={NYDUS_FS_VERSION: FS_VERSION, NYDUS_SOURCE_DIGEST: source.digest},
    )
    pushed = repository.push_manifest(tag, OCI_MANIFEST, encode(manifest))
    entry = Descriptor(
        media_type=OCI_MANIFEST,
        digest=pushed.digest,
        size=pushed.size,
        artifact_type=NYDUS_MANIFEST_ARTIFACT,
    )
    tag = fallback_tag(source.digest)
    others = [other for other in _referrers(repository, tag) if other.digest != entry.digest]
    referrers = Index(schema_version=2, media_type=OCI_INDEX, manifests=(*others, entry))
    repository.push_manifest(tag, OCI_INDEX, encode(referrers))
    return pushed


def _referrers(repository: Repository, tag: str) -> Sequence[Descriptor]:
    """Return what refers to the image already, so that nothing of it is lost."""
    try:
        _, data = repository.manifest(tag)
    except NotFoundError:
        return ()
    return parse_index(data, f"list of referrers {tag}").manifests
