"""What a conversion can be told, and what it tells afterwards.

The defaults of the image format live here and nowhere else.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lamina.codec.compress import LEVELS, Compressor
from lamina.codec.digest import Digester
from lamina.errors import UsageError

if TYPE_CHECKING:
    from lamina.build.sealing import SealOptions
    from lamina.build.start_profile import Profile
    from lamina.trust.encryption.recipients import DecryptionKeys

DEFAULT_CHUNK_SIZE = 128 << 10
DEFAULT_PACK_SIZE = 128 << 10
DEFAULT_COMPRESSOR = Compressor.ZSTD
DEFAULT_LEVEL = 3
DEFAULT_DIGESTER = Digester.BLAKE3

MIN_CHUNK_SIZE = 4 << 10
MAX_CHUNK_SIZE = 16 << 20
MAX_LAYER_BYTES = 1 << 40
MOST_JOBS = 256
DEFAULT_WORK_DIR = "/var/tmp"  # noqa: S108 - files there get no name


def work_folder(work_dir: str | None) -> str:
    """Return the directory for temporary files, which may become as large as an image."""
    return work_dir or os.environ.get("TMPDIR") or DEFAULT_WORK_DIR


@dataclass(frozen=True, slots=True)
class ConvertProgress:
    """How far a conversion is, in bytes; totals grow as layers become known, the one of what is
    pushed as pieces are packed.
    """

    read_bytes: int
    total_read_bytes: int
    packed_bytes: int
    total_packed_bytes: int
    pushed_bytes: int
    total_pushed_bytes: int


@dataclass(frozen=True, slots=True)
class ConvertOptions:
    """How an image is converted.

    ``chunk_size`` is a power of two from 4 KiB to 16 MiB.  ``pack_size`` is the most plaintext that
    small chunks are compressed together in, at most ``chunk_size``; 0 packs nothing, which readers
    before Nydus 2.3 need. ``prefetch`` are absolute paths.  ``platforms`` are
    ``os/architecture[/variant]``; empty means all of an index. ``jobs`` is the number of threads
    that compress, and of layers that are read ahead, 0 one a processor.  ``max_layer_bytes`` bounds
    one decompressed layer. ``work_dir`` takes blobs until they are pushed, if the destination is no
    OCI layout, which gets them in place; None means ``$TMPDIR``, or ``/var/tmp``.
    ``progress`` is called from the converting thread a few times a second.  With ``seal`` the image
    is sealed, else plain.  The pages of ``profile`` become a start artifact, which is part of the
    image and called ``profile_name``, or as the program.  ``keys`` open a source whose layers are
    encrypted.
    """

    chunk_size: int = DEFAULT_CHUNK_SIZE
    pack_size: int = DEFAULT_PACK_SIZE
    compressor: Compressor = DEFAULT_COMPRESSOR
    level: int | None = None
    digester: Digester = DEFAULT_DIGESTER
    prefetch: Sequence[bytes] = ()
    platforms: Sequence[str] = ()
    jobs: int = 0
    max_layer_bytes: int = MAX_LAYER_BYTES
    work_dir: str | None = None
    progress: Callable[[ConvertProgress], None] | None = None
    seal: SealOptions | None = None
    keys: DecryptionKeys | None = None
    profile: Profile | None = None
    profile_name: str | None = None

    def check(self) -> None:
        """Raise UsageError for values that make no sense."""
        size = self.chunk_size
        if size & (size - 1) or not MIN_CHUNK_SIZE <= size <= MAX_CHUNK_SIZE:
            raise UsageError(f"the chunk size {size} is no power of two from 4 KiB to 16 MiB")
        if not 0 <= self.pack_size <= size:
            raise UsageError(
                f"the pack size {self.pack_size} is not between 0 and the chunk size {size}"
            )
        if self.compressor == Compressor.GZIP:
            raise UsageError("chunks cannot be compressed with gzip", hint="use zstd, lz4 or none")
        levels = LEVELS.get(self.compressor)
        if self.level is not None and levels is not None and self.level not in levels:
            raise UsageError(
                f"the level {self.level} is not one of {self.compressor.name.lower()}",
                hint=f"levels are {levels[0]} to {levels[-1]}",
            )
        check_jobs(self.jobs)
        if self.profile is not None:
            from lamina.blob.page_proof import require_numpy

            require_numpy()
            if self.digester != Digester.BLAKE3:
                raise UsageError("a start artifact needs chunk digests that are BLAKE3")
        if any(not path.startswith(b"/") for path in self.prefetch):
            raise UsageError("prefetch paths must be absolute")


@dataclass(frozen=True, slots=True)
class LayerReport:
    """One layer: where it came from, what became of it; sizes in bytes.

    ``plain_bytes`` is all file data in it; ``new_bytes`` what of it no lower layer and no earlier
    file has.
    """

    source_digest: str
    source_bytes: int
    blob_digest: str
    blob_bytes: int
    entries: int
    plain_bytes: int
    new_bytes: int
    chunks: int
    pieces: int


@dataclass(frozen=True, slots=True)
class ImageReport:
    """One converted manifest."""

    platform: str
    source_digest: str
    manifest_digest: str
    layers: tuple[LayerReport, ...]
    bootstrap_bytes: int
    bootstrap_layer_bytes: int
    start_bytes: int = 0
    """Of its own start artifact."""

    @property
    def image_bytes(self) -> int:
        """Return the bytes of all layers as pushed."""
        blobs = sum(layer.blob_bytes for layer in self.layers)
        return blobs + self.bootstrap_layer_bytes + self.start_bytes


@dataclass(frozen=True, slots=True)
class ConvertReport:
    """The result of a conversion: the digest to run, and what it consists of.

    ``phases_s`` maps the name of a phase to the seconds of wall time that the converting thread
    spent in it.
    """

    digest: str
    media_type: str
    images: tuple[ImageReport, ...]
    elapsed_s: float
    phases_s: dict[str, float] = field(default_factory=dict)


def check_jobs(jobs: int) -> None:
    """Raise UsageError for a number of processes that makes no sense; 0 is one a processor."""
    if not 0 <= jobs <= MOST_JOBS:
        raise UsageError(f"the number of jobs is {jobs}, and must be from 0 to {MOST_JOBS}")
