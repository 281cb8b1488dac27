"""``lamina serve content-cache``: layers of images as files for containerd."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING

from lamina.cli import console
from lamina.cli.end_signals import held_end_signals
from lamina.cli.output import print_json

if TYPE_CHECKING:
    from lamina.block.disk import DiskView
    from lamina.block.hash_area import HashArea
    from lamina.content.lazy_image import LazyImage
    from lamina.opening.layer_images import LayerImage
    from lamina.opening.place import Place
    from lamina.serve.content_cache.files import CacheFile


def serve_content_cache(args: Namespace) -> int:
    """Serve until SIGTERM or SIGINT, and then until nobody reads any more."""
    from lamina.serve.content_cache.files import unique_files
    from lamina.serve.content_cache.mount import CacheMount
    from lamina.serve.content_cache.tree import CacheTree

    folder, *images = args.served
    with held_end_signals() as wait_for_end, ExitStack() as stack:
        mounted = CacheMount(folder, args.give_up_after)
        files = unique_files(file for image in images for file in _layer_files(args, image, stack))
        stack.enter_context(mounted)
        mounted.start(CacheTree(files))
        _tell(args, folder, files)
        wait_for_end()
        # Afterwards a second signal ends it, whoever reads.
        if mounted.withdraw():
            console.info("layers are still mounted: answering until they are not")
    return 0


def _layer_files(args: Namespace, image: str, stack: ExitStack) -> Iterator[CacheFile]:
    """Open an image until *stack* ends, and yield the files of its layers."""
    from lamina.block.disk import DiskView
    from lamina.build.native_layers import native_layer_trees
    from lamina.cli.opening import begin_opening, open_request
    from lamina.opening.layer_images import layer_images
    from lamina.serve.content_cache.files import layer_file, verity_file

    opening = stack.enter_context(begin_opening(open_request(args, image)))
    opened = stack.enter_context(closing(opening.open(opening.version())))
    for layer in layer_images(opening.place, opened, native_layer_trees):
        view = DiskView(layer.image)
        view.open_blobs()
        if not args.verity:
            yield layer_file(layer.diff_id, view, view.uuid, image)
            continue
        disk, verity = _hash_area(opening.place, opened, layer, view).behind(view)
        file = layer_file(layer.diff_id, disk, view.uuid + verity.root, image)
        yield from (file, verity_file(file, verity))


def _hash_area(place: Place, image: LazyImage, layer: LayerImage, disk: DiskView) -> HashArea:
    """Return the hash tree of a layer, which is made of all of it the first time."""
    from lamina.block.hash_area import make_hash_area
    from lamina.block.verity import VerityOptions
    from lamina.cli.progress import open_meter
    from lamina.opening.layer_images import keep_hash_area, kept_hash_area
    from lamina.serve.content_cache.files import SALT

    kept = kept_hash_area(place.store, image, layer.diff_id)
    if kept is not None:
        return kept
    with open_meter() as meter:
        advance = meter.add("hash tree", disk.size_bytes)
        area = make_hash_area(disk, VerityOptions(salt=SALT), disk.uuid, advance)
    keep_hash_area(place.store, image, layer.diff_id, area)
    return area


def _tell(args: Namespace, folder: str, files: Sequence[CacheFile]) -> None:
    from lamina.serve.content_cache.files import LAYER_ENDING, diff_id_of

    layers = [file for file in files if file.path.endswith(LAYER_ENDING)]
    if args.json:
        shown = [
            {"path": file.path, "size": file.disk.size_bytes, "diff_id": diff_id_of(file)}
            for file in layers
        ]
        print_json({"folder": os.path.realpath(folder), "layers": shown})
        sys.stdout.flush()
    console.info(f"serving {len(layers)} layers below {folder}")
