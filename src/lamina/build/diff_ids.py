"""The tar streams of layers have the digests that the configuration of the image promises.

Runtimes that unpack an image refuse it otherwise (OCI image configuration, ``rootfs.diff_ids``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lamina.errors import IntegrityError
from lamina.registry.verify import new_hash

if TYPE_CHECKING:
    from lamina.archive.blocks import Block
    from lamina.build.scan import TarStream
    from lamina.oci.manifest import Descriptor


class TarDigest:
    """The digest of a tar stream, and what it is to be."""

    def __init__(self, layer: Descriptor, diff_id: str) -> None:
        self._layer = layer
        self._diff_id = diff_id
        self._hash = new_hash(diff_id)
        self.update = self._hash.update

    def check(self) -> None:
        """Raise IntegrityError if the stream does not have its diff_id."""
        algorithm, _, wanted = self._diff_id.partition(":")
        found = self._hash.hexdigest()
        if found != wanted:
            raise IntegrityError(
                f"the layer {self._layer.digest} has the diff_id {algorithm}:{found}, but the "
                f"configuration of the image says {self._diff_id}",
                hint="the image was put together wrongly; containerd and podman refuse it too",
            )


class CheckedTar:
    """A tar stream whose last read, which gives nothing, checks the digest of the stream."""

    def __init__(self, stream: TarStream, digest: TarDigest) -> None:
        self._stream = stream
        self._digest = digest

    @property
    def compression(self) -> str:
        """Tell how the layer is compressed."""
        return self._stream.compression

    def read(self, size: int = -1, /) -> Block:
        """Return up to ``size`` bytes."""
        data = self._stream.read(size)
        if data:
            self._digest.update(data)
        else:
            self._digest.check()
        return data


def tar_digest(layer: Descriptor, diff_id: str | None) -> TarDigest | None:
    """Return what checks a diff_id, if one is known and the digest of the layer, verified anyway,
    is another.
    """
    if diff_id is None or diff_id == layer.digest:
        return None
    return TarDigest(layer, diff_id)


def checked_tar(stream: TarStream, layer: Descriptor, diff_id: str | None) -> TarStream:
    """Return what reads ``stream`` and checks its diff_id as :func:`tar_digest` does."""
    digest = tar_digest(layer, diff_id)
    return stream if digest is None else CheckedTar(stream, digest)
