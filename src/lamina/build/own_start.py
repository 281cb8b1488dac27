"""Put a start artifact into an image that is being converted, as a layer before its last one."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, cast

from lamina.blob.leaf_table import LeafTable
from lamina.blob.start_seal import require_secret, start_secret
from lamina.build.options import work_folder
from lamina.build.start_attach import default_name, make_entry
from lamina.content.blob_set import BlobSet
from lamina.content.lazy_image import LazyImage
from lamina.content.table_loader import SealedParts
from lamina.errors import UnsupportedError
from lamina.oci.bootstrap_root import read_root
from lamina.oci.start_manifest import own_layer
from lamina.opening.bootstrap_file import mapped_bootstrap
from lamina.opening.metadata_layer import unpack_metadata_layer
from lamina.registry.repository_source import RepositorySource
from lamina.source.fetcher import Fetcher
from lamina.source.retry import RetryPolicy
from lamina.store.node import NodeStore

if TYPE_CHECKING:
    from typing import BinaryIO

    from lamina.build.options import ConvertOptions
    from lamina.build.package import BootstrapLayer
    from lamina.build.sealing import SealedPart
    from lamina.oci.manifest import Descriptor
    from lamina.registry.repository import Repository


MEMORY_FOLDER: Final = "/dev/shm"  # noqa: S108 - the folder that is made in it is private


class OwnStart(NamedTuple):
    """An artifact as a layer, and its bytes."""

    layer: Descriptor
    data: bytes


def make_own_start(
    destination: Repository,
    options: ConvertOptions,
    last: BootstrapLayer,
    digest: str,
    sealed: Sequence[SealedPart] = (),
) -> OwnStart:
    """Return the artifact of the profile of *options* for an image whose blobs are in
    *destination*.

    *last* is the metadata layer, in clear, and *digest* that of it as pushed; *sealed* are the
    blobs of a sealed image.  Raises what making an artifact raises.
    """
    profile = options.profile
    assert profile is not None
    name = options.profile_name or default_name(profile.command)
    secret, root = None, read_root(last.descriptor)
    if sealed:
        secret = require_secret(start_secret([part.description for part in sealed]))
    with _opened(destination, options, last, sealed) as image:
        entry, data, _ = make_entry(image, digest, (name, profile), secret, root)
    return OwnStart(own_layer(entry), data)


@contextmanager
def _opened(
    destination: Repository,
    options: ConvertOptions,
    last: BootstrapLayer,
    sealed: Sequence[SealedPart],
) -> Iterator[LazyImage]:
    """Open the image as it will be, read from where its blobs were pushed to."""
    folder = store_folder(options.work_dir, is_sealed=bool(sealed))
    with tempfile.TemporaryDirectory(prefix="lamina-start-", dir=folder) as name:
        store = NodeStore(Path(name))
        stream = cast("BinaryIO", io.BytesIO(last.data))
        files = unpack_metadata_layer(stream, last.descriptor.media_type, store)
        path = store.metadata_path(files.bootstrap)
        assert path is not None
        source = Fetcher([RepositorySource(destination)], policy=RetryPolicy.from_environment())
        with mapped_bootstrap(path) as bootstrap:
            ids = [entry.blob_id for entry in bootstrap.blobs]
            parts = dict(zip(ids, map(_parts, ids, sealed), strict=True)) if sealed else None
            with closing(BlobSet(bootstrap, files, source, store, sealed=parts)) as blobs:
                yield LazyImage(bootstrap, blobs)


def store_folder(work_dir: str | None, *, is_sealed: bool) -> str:
    """Return where the store of the image may be for a while: of one that is sealed in memory,
    since a disk would have plaintext of it, even after a sudden end.

    Raises UnsupportedError where memory has no folder.
    """
    if not is_sealed:
        return work_folder(work_dir)
    if not os.access(MEMORY_FOLDER, os.R_OK | os.W_OK | os.X_OK):
        raise UnsupportedError(
            f"the pages of a sealed image's start are read in memory, and {MEMORY_FOLDER} is no "
            "folder that can be written to",
            hint="convert without --profile",
        )
    return MEMORY_FOLDER


def _parts(blob_id: str, part: SealedPart) -> SealedParts:
    described = part.description
    leaves = LeafTable.decode(
        memoryview(part.leaf_table),
        described.piece_count,
        described.size_bytes,
        described.root,
        blob_id,
    )
    return SealedParts(leaves, described.opener())
