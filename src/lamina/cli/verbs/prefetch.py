"""``lamina prefetch``."""

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
    byte_size,
)
from lamina.cli.output import human_size, print_json
from lamina.cli.parser import Parser
from lamina.errors import UsageError

if TYPE_CHECKING:
    from lamina.content.statistics import Statistics
    from lamina.image.base import Stat

HELP: Final = HelpPage(
    """
    Fetches files of a native image into the node store before they are read: those that PATH names,
    or that are below the folders it names; without PATH those that the image itself wants to be
    fetched early (`lamina convert --prefetch`). Transfers that somebody waits for, in this process,
    go first.
    """,
    examples=(
        ("lamina prefetch localhost:5000/node", "What the image wants early."),
        (
            "lamina prefetch --limit-rate 2M localhost:5000/node /usr/lib",
            "A folder, at no more than 2 MiB a second.",
        ),
    ),
    json_keys=(
        ("files", "how many files that were"),
        ("bytes", "their size"),
        ("fetched_bytes", "that came from the registry"),
        ("copied_bytes", "that other images on this node had"),
        ("requests", "that were made for it"),
    ),
    environment=(STORE_ENVIRONMENT, *REGISTRY_ENVIRONMENT),
    see_also=("pull", "coverage"),
)


def add_arguments(parser: Parser) -> None:
    """Declare the options and arguments."""
    parser.add_argument("image", metavar="IMAGE", help="reference of a native or indexed image")
    parser.add_argument("paths", metavar="PATH", nargs="*", help="paths in the image")
    parser.add_argument(
        "--limit-rate",
        metavar="SIZE",
        type=byte_size,
        help="fetch no more than this a second, as 512K or 2M",
    )
    add_registry_options(parser)
    add_output_options(parser)


def run(args: Namespace) -> int:
    """Fetch the files."""
    import threading

    from lamina.cli.opening import open_native
    from lamina.cli.progress import open_meter
    from lamina.content.residency import extents_of, fetch, fetch_gently, files_below, prefetch_list
    from lamina.source.reader_priority import TokenBucket

    with open_native(args, args.image) as image:
        stats = list(files_below(image, args.paths)) if args.paths else prefetch_list(image)
        if not stats and not args.paths:
            raise UsageError(
                f"{args.image} has no list of what to fetch early",
                hint="name paths, or convert it with --prefetch",
            )
        extents = extents_of(image, stats)
        with open_meter() as meter:
            advance = meter.add("prefetch", sum(extent.size_bytes for extent in extents))
            if args.limit_rate:
                bucket = TokenBucket(args.limit_rate)
                fetch_gently(image, extents, threading.Event(), bucket=bucket, progress=advance)
            else:
                fetch(image, extents, advance)
        cost = image.statistics
    _tell(args, stats, cost)
    return 0


def _tell(args: Namespace, stats: list[Stat], cost: Statistics) -> None:
    size = sum(stat.size for stat in stats)
    if args.json:
        print_json(
            {
                "files": len(stats),
                "bytes": size,
                "fetched_bytes": cost.fetched_bytes,
                "copied_bytes": cost.copied_bytes,
                "requests": cost.requests,
            }
        )
        return
    fetched = f"{human_size(cost.fetched_bytes)} in {cost.requests} requests"
    console.info(f"{len(stats)} files, {human_size(size)}; fetched {fetched}")
