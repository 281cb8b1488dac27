"""``lamina gc``."""

from __future__ import annotations

from argparse import Namespace
from typing import Final

from lamina.cli import story
from lamina.cli.options import STORE_ENVIRONMENT, add_output_options, add_store_option
from lamina.cli.output import human_size, print_json
from lamina.cli.page import Page
from lamina.cli.parser import Parser

PAGE: Final = Page(
    """
    Removes what nothing uses from the node store: blobs that no process has open, no mount reads
    and no resident image needs, and the metadata of images that are left without any. What is
    removed is fetched again when it is wanted. A budget (--store-budget) does the same, a part at a
    time, when there is need.
    """,
    examples=(("lamina gc", "Free the space of images that are not in use."),),
    json_keys=(
        ("blobs, blob_bytes", "cache files that were removed, and their space on disk"),
        ("files, file_bytes", "the same of metadata"),
        ("used_bytes", "what the store takes now"),
    ),
    environment=(STORE_ENVIRONMENT,),
    see_also=("pull", "unpin"),
)


def add_arguments(parser: Parser) -> None:
    """Declare the options."""
    add_store_option(parser)
    add_output_options(parser)


def run(args: Namespace) -> int:
    """Collect."""
    from lamina.cli.opening import node_store
    from lamina.image.collect import collect

    store = node_store(args)
    found = collect(store)
    used = store.space.used_bytes()
    if args.json:
        print_json({**found._asdict(), "used_bytes": used})
    else:
        freed = human_size(found.blob_bytes + found.file_bytes)
        story.tell(
            f"removed {found.blobs} blobs and {found.files} metadata files, {freed}; "
            f"{human_size(used)} are in use"
        )
    return 0
