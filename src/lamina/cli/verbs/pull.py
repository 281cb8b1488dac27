"""``lamina pull``."""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING, Final

from lamina.cli import console
from lamina.cli.help_text import HelpPage
from lamina.cli.options import (
    REGISTRY_ENVIRONMENT,
    STORE_ENVIRONMENT,
    add_output_options,
    add_registry_options,
)
from lamina.cli.output import human_size, print_json, print_line
from lamina.cli.parser import Parser

if TYPE_CHECKING:
    from lamina.content.lazy_image import LazyImage

HELP: Final = HelpPage(
    """
    Fetches all of a native or indexed image into the node store, so that starting it reads no
    network. What is there already, also as a part of other images, is not fetched again. It ends
    well only if all of the image is there at the end; where a budget or the disk is too small for
    it, it says so before it begins.

    With --resident it also stays: it is neither evicted nor collected, and until it is pulled again
    or unpinned, its tag means this image without asking the registry.
    """,
    examples=(
        ("lamina pull localhost:5000/node", "Have it here before it is needed."),
        ("lamina pull --resident localhost:5000/node", "Keep it, and need no registry any more."),
    ),
    json_keys=(
        ("reference", "with the digest"),
        ("digest", "of the manifest"),
        ("fetched_bytes", "that came from the registry"),
        ("copied_bytes", "that other images on this node had"),
        ("requests", "that were made for it"),
        ("resident", "whether it stays"),
    ),
    environment=(STORE_ENVIRONMENT, *REGISTRY_ENVIRONMENT),
    see_also=("prefetch", "coverage", "unpin", "gc"),
)


def add_arguments(parser: Parser) -> None:
    """Declare the options and arguments."""
    parser.add_argument("image", metavar="IMAGE", help="reference of a native or indexed image")
    parser.add_argument(
        "--resident", action="store_true", help="keep it, and do not ask what its tag points to"
    )
    add_registry_options(parser, always_pulls=True)
    add_output_options(parser)


def run(args: Namespace) -> int:
    """Fetch the image."""
    from lamina.cli.opening import node_store, open_native
    from lamina.content.residency import make_resident, pull
    from lamina.oci.reference import parse_reference

    with open_native(args, args.image) as image:
        from lamina.cli.progress import open_meter

        total = sum(blob.size_bytes for blob in image.blobs)
        with open_meter() as meter:
            advance = meter.add("pull", total)
            if args.resident:
                name = str(parse_reference(args.image))
                make_resident(image, node_store(args), name, advance)
            else:
                pull(image, advance)
        _tell(args, image)
    return 0


def _tell(args: Namespace, image: LazyImage) -> None:
    assert image.origin is not None
    assert image.origin.reference is not None
    reference, cost = image.origin.reference, image.statistics
    if args.json:
        print_json(
            {
                "reference": str(reference),
                "digest": reference.digest,
                "fetched_bytes": cost.fetched_bytes,
                "copied_bytes": cost.copied_bytes,
                "requests": cost.requests,
                "resident": args.resident,
            }
        )
        return
    print_line(str(reference.digest))
    copied = f", {human_size(cost.copied_bytes)} were here" if cost.copied_bytes else ""
    console.info(f"{human_size(cost.fetched_bytes)} in {cost.requests} requests{copied}")
