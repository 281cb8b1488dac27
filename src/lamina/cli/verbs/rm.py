"""``lamina rm``."""

from __future__ import annotations

import sys
from argparse import Namespace
from typing import TYPE_CHECKING, Final

from lamina.cli import console
from lamina.cli.help_text import HelpPage
from lamina.cli.options import STORE_ENVIRONMENT, add_output_options, add_store_option
from lamina.cli.output import human_size, print_json
from lamina.cli.parser import Parser
from lamina.errors import NotFoundError, UsageError

if TYPE_CHECKING:
    from lamina.opening.node_images import NodeImage
    from lamina.store.node import NodeStore

HELP: Final = HelpPage(
    """
    Removes images from this node, with all that no other image needs, and what containers wrote. An
    image that is kept by `lamina pull --resident`, mounted or open is refused. An image is fetched
    again when it is wanted; what a container wrote is gone for good.
    """,
    examples=(
        ("lamina rm localhost:5000/node", "An image by its name."),
        ("lamina rm 5891b5b522d5", "By the begin of its digest."),
        ("lamina rm web", "What the container of `lamina run --name web` wrote."),
    ),
    json_note="One object a line for everything that was removed.",
    json_keys=(
        ("digest", "of an image"),
        ("container", "name of a container, instead of digest"),
        ("disk_bytes", "what that frees on the disk"),
    ),
    environment=(STORE_ENVIRONMENT,),
    see_also=("images", "gc", "unpin"),
)


def add_arguments(parser: Parser) -> None:
    """Declare the options and arguments."""
    parser.add_argument(
        "what", metavar="IMAGE|CONTAINER", nargs="+", help="as `lamina images` lists it"
    )
    parser.add_argument("-f", "--force", action="store_true", help="kill a container that runs")
    parser.add_argument(
        "--volumes", action="store_true", help="for docker's sake: they always go with a container"
    )
    add_store_option(parser)
    add_output_options(parser)


def run(args: Namespace) -> int:
    """Remove one after the other; the first that cannot be ends it."""
    from lamina.cli.opening import node_store
    from lamina.cli.verbs.images import mountpoints
    from lamina.opening.node_images import remove_image

    store = node_store(args)
    mounted = mountpoints(str(store.root))
    for text in args.what:
        image = _find(store, text)
        if image is None:
            _tell(args, {"container": text}, _remove_container(args, store, text))
            continue
        for mountpoint in mounted.get(image.digest, ()):
            raise UsageError(
                f"{text} is mounted on {mountpoint}", hint=f"lamina umount {mountpoint}"
            )
        removed = remove_image(store, image)
        _tell(args, {"digest": image.digest}, removed.blob_bytes + removed.file_bytes)
    return 0


def _remove_container(args: Namespace, store: NodeStore, name: str) -> int:
    """Remove a container and return what that frees; raises UsageError if it runs."""
    from lamina.store.containers import remove_container

    if sys.platform == "linux":
        from lamina.containers.control import remove, remove_abandoned
        from lamina.containers.places import bundles, is_container
        from lamina.serve.container_folders import check_ended

        if is_container(name, store.root):
            return remove(name, store.root, force=args.force)
        if (size_bytes := remove_abandoned(name)) is not None:
            return size_bytes
        check_ended(name, bundles())
    return remove_container(store.root, name)


def _is_container(store: NodeStore, name: str) -> bool:
    from lamina.store.containers import list_containers

    if any(each.name == name for each in list_containers(store.root)):
        return True
    if sys.platform != "linux":
        return False
    from lamina.containers.places import is_container

    return is_container(name, store.root)


def _find(store: NodeStore, text: str) -> NodeImage | None:
    """Return the image that a word means, None for a kept container."""
    from lamina.opening.node_images import list_images, with_digest

    images = list_images(store)
    name = _reference(text)
    found = {image.digest: image for image in images if name in image.names}
    if _is_container(store, text):
        if found:
            raise UsageError(
                f"{text!r} is both an image and a container", hint=f"write {name} for the image"
            )
        return None
    if not found:
        found = {image.digest: image for image in with_digest(images, text)}
    if len(found) > 1:
        raise UsageError(f"{text!r} means {len(found)} images", hint="write more of the digest")
    if not found:
        raise NotFoundError(
            f"{text!r} is no image or container of this node", hint="`lamina images` lists them"
        )
    return next(iter(found.values()))


def _reference(text: str) -> str | None:
    from lamina.oci.reference import parse_reference

    try:
        return str(parse_reference(text))
    except UsageError:
        return None


def _tell(args: Namespace, what: dict[str, str], disk_bytes: int) -> None:
    if args.json:
        print_json({**what, "disk_bytes": disk_bytes})
    else:
        (name,) = what.values()
        console.info(f"removed {name}, {human_size(disk_bytes)}")
