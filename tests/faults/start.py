"""Start artifacts of the samples: a right one, and one with a forged page in the middle."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path

from lamina.blob.start_artifact import (
    PREFIX_BYTES,
    FrameContent,
    encode,
    open_frame,
    parse_prefix,
    parse_tables,
)
from lamina.blob.table import ChunkTable
from lamina.build.start_build import build_start
from lamina.build.start_profile import Profile, ProfileLine
from lamina.content.lazy_blob import LazyBlob
from lamina.content.lazy_image import LazyImage
from lamina.erofs.reader import Bootstrap
from lamina.oci.bootstrap_root import BootstrapRoot
from lamina.oci.manifest import (
    EMPTY,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    ImageIndex,
    describe,
)
from lamina.oci.manifest import encode as encode_document
from lamina.oci.start_manifest import START_PAGES, StartEntry, start_manifest
from lamina.registry.referrers import fallback_tag, referring_entry
from lamina.source.fetcher import Fetcher
from lamina.store.node import NodeStore
from tests.support.fake_registry import FakeRegistry
from tests.support.native_images import BuiltImage, MemorySource


def add_start(
    registry: FakeRegistry,
    image: BuiltImage,
    subject: Descriptor,
    root: BootstrapRoot | None,
    *,
    is_forged: bool,
) -> str:
    """Attach an artifact of every other file, the begin of each big one, and what leads there in
    the bootstrap, if that has a *root*; its digest.
    """
    data = _artifact(image, subject.digest, root)
    if is_forged:
        data = _forged(data)
    layer = describe(START_PAGES, data)
    entry = StartEntry("start", (), subject.digest, layer)
    manifest = start_manifest(subject, entry)
    raw = encode_document(manifest)
    registry.add_blob(data)
    registry.add_blob(EMPTY)
    listed = referring_entry(describe(OCI_MANIFEST, raw, manifest.annotations), manifest)
    registry.manifests[listed.digest] = (OCI_MANIFEST, raw)
    index = ImageIndex(schema_version=2, media_type=OCI_INDEX, manifests=(listed,))
    registry.manifests[fallback_tag(subject.digest)] = (OCI_INDEX, encode_document(index))
    return layer.digest


def _artifact(image: BuiltImage, digest: str, root: BootstrapRoot | None) -> bytes:
    with tempfile.TemporaryDirectory(prefix="lamina-faults-") as folder, ExitStack() as stack:
        source = Fetcher([MemorySource(image)])
        bootstrap = stack.enter_context(Bootstrap(image.bootstrap))
        blobs = []
        for entry, built in zip(bootstrap.blobs, image.blobs, strict=True):
            table = ChunkTable.from_meta(built.meta, entry)
            cache = NodeStore(Path(folder)).blob(
                entry.blob_id, entry.uncompressed_size, entry.chunk_count, identity=b""
            )
            digests = bootstrap.chunk_digests(entry.index)
            blobs.append(stack.enter_context(LazyBlob(table, digests, source, cache)))
        native = LazyImage(bootstrap, blobs)
        files = [(path, stat) for path, stat in native.walk() if stat.is_file and stat.size]
        lines = [
            ProfileLine(path, ((0, 30), (61, 90)) if stat.size > 400_000 else ())
            for number, (path, stat) in enumerate(files)
            if number % 2 or stat.size > 400_000
        ]
        return build_start(native, digest, Profile(tuple(lines)), root and root.hex)[0]


def _forged(data: bytes) -> bytes:
    """The same with one bit changed in the middle, and all digests of its own made to fit."""
    prefix = parse_prefix(data[:PREFIX_BYTES])
    start = PREFIX_BYTES + prefix.stored_bytes
    tables = parse_tables(prefix, data[PREFIX_BYTES:start])
    frames = []
    for number, frame in enumerate(tables.frames):
        stored = data[start : start + frame.stored_bytes]
        siblings, pages = map(bytearray, open_frame(frame, stored))
        start += frame.stored_bytes
        if number == len(tables.frames) // 2:
            pages[len(pages) // 2] ^= 1
        frames.append(FrameContent(bytes(siblings), bytes(pages), frame.pages, frame.files))
    return encode(prefix.manifest_digest, tables.blob_ids, tables.paths, frames)
