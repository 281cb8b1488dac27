"""Write a docker archive that ``docker load`` of any age takes: one image, layers decompressed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, cast

from lamina.archive.stream import open_layer
from lamina.errors import IntegrityError, UnsupportedError
from lamina.oci.manifest import NYDUS_BLOB, Descriptor, ImageIndex, Manifest, encode, parse_manifest
from lamina.oci.reference import full_name
from lamina.registry.archive_file import ArchiveFile
from lamina.registry.resolve import check_layers, read_config
from lamina.registry.staged_archive import StagedRepository
from lamina.registry.verify import HashingReader

if TYPE_CHECKING:
    from typing import BinaryIO

_HINT: Final = "write an oci-archive: instead, which takes every kind of image"


class DockerArchiveWriter(StagedRepository):
    """A docker archive that is being written."""

    _manifest: Manifest | None = None
    _tag: str | None = None

    def push_manifest(
        self, tag: str | None, media_type: str, data: bytes, *, digest: str | None = None
    ) -> Descriptor:
        """Take the one image; UnsupportedError for an index, a second or a native image."""
        manifest = parse_manifest(data)
        if isinstance(manifest, ImageIndex) or self._manifest is not None:
            raise UnsupportedError(
                "a docker archive holds one image of one platform",
                hint="choose one with --platform, or write an oci-archive:",
            )
        if any(layer.media_type == NYDUS_BLOB for layer in manifest.layers):
            raise UnsupportedError("a docker archive cannot hold a native image", hint=_HINT)
        self._manifest = manifest
        self._tag = tag or self._reference.tag
        return super().push_manifest(tag, media_type, data, digest=digest)

    def _write_archive(self, archive: ArchiveFile) -> None:
        manifest = self._manifest
        assert manifest is not None
        config = read_config(self, manifest)
        check_layers(manifest, config)
        diff_ids = config.rootfs.diff_ids
        names = [f"{diff_id.partition(':')[2]}.tar" for diff_id in diff_ids]
        for position, (layer, diff_id) in enumerate(zip(manifest.layers, diff_ids, strict=True)):
            if names[position] not in names[:position]:
                self._add_layer(archive, layer, diff_id, names[position])
        config_name = f"{manifest.config.hex}.json"
        archive.add(config_name, config.raw)
        tags = [full_name(self._tag)] if self._tag else []
        item = {"Config": config_name, "RepoTags": tags, "Layers": names}
        archive.add("manifest.json", encode([item]))

    def _add_layer(self, archive: ArchiveFile, layer: Descriptor, diff_id: str, name: str) -> None:
        with self.open_blob(layer) as blob, open_layer(blob, layer.media_type) as stream:
            hashing = HashingReader(cast("BinaryIO", stream))
            archive.add_stream(name, cast("BinaryIO", hashing))
            # What follows the tar's end in the blob is part of its digest.
            while blob.read(1 << 20):
                pass
        if hashing.digest != diff_id:
            raise IntegrityError(f"the layer {layer.digest} does not have the diff_id {diff_id}")
