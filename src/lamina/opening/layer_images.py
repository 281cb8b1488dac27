"""The layers of an opened image, each as an image by itself: what it brings, and what it hides in
the form of overlayfs.

The trees come with the index (``lamina index --layers``) and are over the same blobs, so what was
fetched for a layer is there for the image, and the other way round.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from msgspec.structs import replace

from lamina.block.hash_area import HashArea, read_hash_area
from lamina.content.chosen_blobs import ChosenBlobs
from lamina.content.lazy_image import LazyImage, Origin
from lamina.erofs.layout import CHECK_VERSION
from lamina.errors import FormatError, NotFoundError, UsageError
from lamina.oci.layers_manifest import layer_trees_of
from lamina.opening.bootstrap_file import mapped_bootstrap
from lamina.opening.lazy_index import is_index_image
from lamina.opening.metadata_layer import (
    check_stored_bootstrap,
    unpack_layer_trees,
    unpack_metadata_layer,
)
from lamina.opening.proven_layers import check_named_layers
from lamina.store.records import IMAGE, LAYERS, LayersRecord

if TYPE_CHECKING:
    from lamina.erofs.reader import Bootstrap
    from lamina.oci.manifest import Manifest
    from lamina.opening.place import Place
    from lamina.store.node import NodeStore


MakeTrees: TypeAlias = Callable[[LazyImage], Mapping[str, bytes | bytearray]]
"""Makes the trees of the layers of a native image, by diff_id."""


class LayerImage(NamedTuple):
    """A layer of an image, which is open as long as the image is."""

    diff_id: str
    image: LazyImage


def layer_images(place: Place, image: LazyImage, native_trees: MakeTrees) -> list[LayerImage]:
    """Return the layers of an image that was opened from *place*, the lowest first.  Those of a
    native image *native_trees* makes of its blobs, the first time.

    Raises NotFoundError if nobody made their trees, IntegrityError if the configuration of a native
    image does not name its layers, FormatError for trees that are not of this
    image, and what reading them raises.
    """
    trees = _trees(place, image, native_trees)
    layers = []
    for diff_id in image.config.rootfs.diff_ids:
        if diff_id not in trees:
            raise FormatError(f"the tree of the layer {diff_id} did not come with the image")
        layers.append(LayerImage(diff_id, _opened(place, image, trees[diff_id])))
    return layers


def wanted_layer(layers: Sequence[LayerImage], text: str) -> LayerImage:
    """Return the layer of a number, 1 being the lowest, or of a diff_id.  Raises UsageError."""
    number = int(text) if text.isascii() and text.isdigit() else 0
    if 0 < number <= len(layers):
        return layers[number - 1]
    for layer in layers:
        if layer.diff_id == text:
            return layer
    raise UsageError(f"the image has {len(layers)} layers, and none of them is {text}")


def kept_hash_area(store: NodeStore, image: LazyImage, diff_id: str) -> HashArea | None:
    """Return the hash tree of a layer that was made on this node, None if there is none."""
    record = store.records.read(LAYERS, _digest(image))
    digest = None if record is None else record.hash_areas.get(diff_id)
    data = None if digest is None else store.metadata(digest)
    return None if data is None else read_hash_area(data)


def keep_hash_area(store: NodeStore, image: LazyImage, diff_id: str, area: HashArea) -> None:
    """Keep the hash tree of a layer with its image.  Raises StoreError."""
    digest = store.put_metadata(area.data)
    with store.locked():
        record = store.records.read(LAYERS, _digest(image))
        if record is not None:
            areas = {**record.hash_areas, diff_id: digest}
            store.records.write(LAYERS, _digest(image), replace(record, hash_areas=areas))


def _digest(image: LazyImage) -> str:
    """Return the digest of the manifest that was opened, "" of an image without one."""
    origin = image.origin
    return "" if origin is None or origin.reference is None else origin.reference.digest or ""


def _trees(place: Place, image: LazyImage, native_trees: MakeTrees) -> dict[str, str]:
    """Return the digests of the trees in the store by diff_id."""
    store, opened = place.store, _digest(image)
    known = store.records.read(LAYERS, opened) if opened else None
    is_checked = known is not None and known.check == CHECK_VERSION
    if known is not None and is_checked and all(map(store.metadata_path, known.trees.values())):
        return known.trees
    manifest = image.manifest
    blob = None if manifest is None else layer_trees_of(manifest)
    is_native = manifest is not None and manifest.is_nydus and not manifest.is_sealed
    if manifest is not None and is_native and not is_index_image(manifest):
        diff_ids, proven = image.config.rootfs.diff_ids, _metadata_diff_id(place, manifest, opened)
        check_named_layers(manifest, opened, diff_ids, proven)
        made = {name: store.put_metadata(tree) for name, tree in native_trees(image).items()}
        for digest in made.values():
            check_stored_bootstrap(digest, store)
        store.records.write(LAYERS, opened, LayersRecord(made, CHECK_VERSION))
        return made
    if blob is None:
        raise NotFoundError(
            f"the layers of {place.reference} have no trees of their own",
            hint=f"lamina index --layers {place.reference} makes them",
        )
    with place.stream(blob) as stream:
        trees = unpack_layer_trees(stream, blob.media_type, store)
    store.records.write(LAYERS, opened, LayersRecord(trees, CHECK_VERSION))
    return trees


def _metadata_diff_id(place: Place, manifest: Manifest, digest: str) -> str:
    known = place.store.records.read(IMAGE, digest)
    if known is not None and known.diff_id:
        return known.diff_id
    layer = manifest.layers[-1]
    with place.stream(layer) as stream:
        return unpack_metadata_layer(stream, layer.media_type, place.store).diff_id


def _opened(place: Place, image: LazyImage, digest: str) -> LazyImage:
    path = place.store.metadata_path(digest)
    if path is None:
        raise NotFoundError(f"the tree of a layer of {place.reference} vanished from the store")
    resources = ExitStack()
    bootstrap = resources.enter_context(mapped_bootstrap(path))
    image.close_with(resources)
    blobs = ChosenBlobs(image.blobs, _numbers(bootstrap, image.bootstrap))
    return LazyImage(bootstrap, blobs, origin=Origin(path, config=image.config))


def _numbers(layer: Bootstrap, image: Bootstrap) -> list[int]:
    """Return which blob of the image each blob of a layer is."""
    numbers = {blob.blob_id: number for number, blob in enumerate(image.blobs)}
    found = []
    for blob in layer.blobs:
        number = numbers.get(blob.blob_id)
        # The same but for its place in a table: chunks lie where the table of the image has them.
        if number is None or blob._replace(index=number) != image.blobs[number]:
            raise FormatError(f"a layer has its data in {blob.blob_id}, which the image has not")
        found.append(number)
    return found
