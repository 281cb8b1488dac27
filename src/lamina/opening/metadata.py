"""Step 3 of opening an image: its configuration and the metadata layer, verified and in the store.

The whole tree is checked here, before anybody sees any of it, and the record of the image says so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lamina.opening.manifest import FoundManifest, offered_index
from lamina.opening.metadata_layer import checked_files, unpack_metadata_layer
from lamina.opening.plaintext_storage_policy import refuse_shared_storage
from lamina.opening.proven_layers import check_layers
from lamina.opening.sealed import Content, no_key_error, open_sealed
from lamina.registry.resolve import load_config
from lamina.store.records import IMAGE

if TYPE_CHECKING:
    from lamina.oci.manifest import Descriptor, ImageConfig
    from lamina.opening.place import Place
    from lamina.store.node import NodeStore
    from lamina.store.records import MetadataFiles
    from lamina.trust.encryption.recipients import DecryptionKeys


def read_metadata(
    place: Place,
    found: FoundManifest,
    keys: DecryptionKeys | None = None,
    release: int | None = None,
    *,
    proven_layers: bool = False,
) -> Content:
    """Return what is known of an image before any of its blobs is read.

    Key brokers are told *release*.  With *proven_layers* the configuration must name the layers of
    the image.  Raises NoKeyError for a sealed image without *keys*,
    UnusableIndexError for an index that was found beside an image and is not good, and what reading
    and checking raise.
    """
    config = load_config(found.image, place)
    with offered_index(found, place.reference):
        known = _known_files(place.store, found.digest)
        if proven_layers and known is not None and not known.diff_id:
            # An earlier version has read it.
            known = None
        if found.manifest.is_sealed:
            if keys is None or not keys:
                raise no_key_error(place.reference)
            content = _sealed(place, found, config, known, keys.for_image(found.digest, release))
        else:
            content = Content(known or _unpacked(place, found.manifest.layers[-1]), config)
        if known is None:
            place.store.records.write(IMAGE, found.digest, content.files)
    if proven_layers:
        check_layers(found, config.rootfs.diff_ids, content.files.diff_id)
    return content


def _sealed(
    place: Place,
    found: FoundManifest,
    config: ImageConfig,
    known: MetadataFiles | None,
    keys: DecryptionKeys,
) -> Content:
    refuse_shared_storage(place.store.root)
    diff_ids = config.rootfs.diff_ids
    return open_sealed(found.manifest, diff_ids, place.blob, place.store, keys, known)


def _unpacked(place: Place, layer: Descriptor) -> MetadataFiles:
    with place.stream(layer) as stream:
        return unpack_metadata_layer(stream, layer.media_type, place.store)


def _known_files(store: NodeStore, digest: str) -> MetadataFiles | None:
    """Return what an earlier opening of the image put into the store, if it is still there."""
    files = store.records.read(IMAGE, digest)
    if files is None or not all(map(store.metadata_path, files.digests)):
        return None
    checked = checked_files(files, store)
    if checked is not files:
        store.records.write(IMAGE, digest, checked)
    return checked
