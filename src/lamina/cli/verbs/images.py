"""``lamina images``."""

from __future__ import annotations

import time
from argparse import Namespace
from typing import TYPE_CHECKING, Final

from lamina.cli.help_text import HelpPage
from lamina.cli.options import STORE_ENVIRONMENT, add_output_options, add_store_option
from lamina.cli.output import human_size, print_json, print_line, print_table, share, shown_text
from lamina.cli.parser import Parser

if TYPE_CHECKING:
    from lamina.opening.node_images import NodeImage
    from lamina.store.containers import KeptContainer

HELP: Final = HelpPage(
    """
    Lists the images that were opened on this node, the last used first, and how much of each is
    here; and what containers wrote that `lamina run` has kept. No registry is asked. An image whose
    tag means another one by now has no name.
    """,
    examples=(
        ("lamina images", "A table."),
        (
            "lamina images --json | jq -r 'select(.ready_bytes == .total_bytes).digest'",
            "What is wholly here.",
        ),
    ),
    json_note="One object a line for every image, and then for every kept container.",
    json_keys=(
        ("digest", "of the manifest that was opened"),
        ("names", "by which it was opened last, as references"),
        ("kind", "native, sealed, or index (an ordinary image that is opened by its index)"),
        ("ready_bytes, total_bytes", "what is here of its blobs, decompressed; counted in chunks"),
        ("profiles", "start artifacts of `lamina profile` that are kept here"),
        ("pinned", "whether `lamina pull --resident` keeps it"),
        ("last_used", "when it was opened last, in seconds since 1970"),
        ("mountpoints", "where this user has mounted it"),
        ("container", "name of a container, instead of digest"),
        ("disk_bytes", "what a container wrote, in blocks of the disk"),
    ),
    environment=(STORE_ENVIRONMENT,),
    see_also=("rm", "gc", "mounts", "pull"),
)


def add_arguments(parser: Parser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--names", action="store_true", help="print the names of images only, one a line"
    )
    add_store_option(parser)
    add_output_options(parser)


def run(args: Namespace) -> int:
    """List the images and the containers."""
    from lamina.cli.opening import node_store
    from lamina.opening.node_images import list_images
    from lamina.store.containers import list_containers

    store = node_store(args)
    images, containers = list_images(store), list_containers(store.root)
    mounted = mountpoints(str(store.root))
    if args.names:
        for name in sorted({name for image in images for name in image.names}):
            print_line(shown_text(name))
    elif args.json:
        for image in images:
            print_json(image_object(image, mounted.get(image.digest, [])))
        for container in containers:
            print_json(container_object(container))
    else:
        _print_tables(images, containers, mounted)
    return 0


def mountpoints(store_root: str) -> dict[str, list[str]]:
    """Return where this user has mounted images of a store, by their digests."""
    import os
    import sys

    found: dict[str, list[str]] = {}
    if sys.platform != "linux":
        return found
    from lamina.serve.mounts import list_mounts

    for status in list_mounts():
        if os.path.realpath(status.record.store) == os.path.realpath(store_root):
            found.setdefault(status.record.digest, []).append(status.record.mountpoint)
    return found


def image_object(image: NodeImage, mounted: list[str]) -> dict[str, object]:
    """Return an image as JSON."""
    return {
        "digest": image.digest,
        "names": list(image.names),
        "kind": image.kind,
        "ready_bytes": image.ready_bytes,
        "total_bytes": image.total_bytes,
        "profiles": image.profiles,
        "pinned": image.resident,
        "last_used": round(image.last_used_s, 3),
        "mountpoints": mounted,
    }


def container_object(container: KeptContainer) -> dict[str, object]:
    """Return a container as JSON."""
    return {
        "container": container.name,
        "disk_bytes": container.disk_bytes,
        "last_used": round(container.last_used_s, 3),
    }


def _print_tables(
    images: list[NodeImage], containers: list[KeptContainer], mounted: dict[str, list[str]]
) -> None:
    now = time.time()
    rows: list[tuple[str, ...]] = [("NAME", "DIGEST", "KIND", "HERE", "OF", "USED", "NOTES")]
    for image in images:
        mounts = len(mounted.get(image.digest, ()))
        rows += [_row(image, name, mounts, now) for name in image.names or ("-",)]
    if images:
        print_table(rows, frozenset((3, 4)), 0)
    if images and containers:
        print_line("")
    if containers:
        head = ("CONTAINER", "WROTE", "USED")
        body = [(c.name, human_size(c.disk_bytes), age(now - c.last_used_s)) for c in containers]
        print_table([head, *body], frozenset((1,)), 0)


def _row(image: NodeImage, name: str, mounts: int, now: float) -> tuple[str, ...]:
    notes = [] if not image.resident else ["pinned"]
    if mounts:
        notes.append("mounted" if mounts == 1 else f"{mounts} mounts")
    if image.profiles:
        notes.append("profile" if image.profiles == 1 else f"{image.profiles} profiles")
    return (
        shown_text(name.removeprefix("docker://")),
        image.digest.partition(":")[2][:12],
        image.kind,
        share(image.ready_bytes, image.total_bytes),
        human_size(image.total_bytes),
        age(now - image.last_used_s),
        ", ".join(notes),
    )


def age(seconds: float) -> str:
    """Return how long ago something was: ``now``, ``5 min``, ``3 h``, ``12 d``."""
    for limit, step, unit in ((60, 1, ""), (3600, 60, "min"), (2 * 86400, 3600, "h")):
        if seconds < limit:
            return f"{int(seconds // step)} {unit}" if unit else "now"
    return f"{int(seconds // 86400)} d"
