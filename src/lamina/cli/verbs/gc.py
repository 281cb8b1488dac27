"""``lamina gc``."""

from __future__ import annotations

import argparse
import re
from argparse import Namespace
from typing import Final

from lamina.cli import console
from lamina.cli.help_text import HelpPage
from lamina.cli.options import STORE_ENVIRONMENT, add_output_options, add_store_option
from lamina.cli.output import human_size, print_json
from lamina.cli.parser import Parser

HELP: Final = HelpPage(
    """
    Removes what nothing uses from the node store: blobs that no process has open, no mount reads
    and no resident image needs, and the metadata of images that are left without any. What is
    removed is fetched again when it is wanted. A budget (--store-budget) does the same, a part at a
    time, when there is need. What containers wrote stays: `lamina rm` removes it.
    """,
    examples=(
        ("lamina gc", "Free the space of images that are not in use."),
        ("lamina gc --older-than 7d", "But keep what was used in the last week."),
        ("lamina gc --dry-run", "Only tell what that would free."),
    ),
    json_keys=(
        ("blobs, blob_bytes", "cache files that were removed, and their space on disk"),
        ("files, file_bytes", "the same of metadata"),
        ("used_bytes", "what the store takes now, of its budget"),
        ("budget_bytes", "the budget, null without one"),
        ("containers, container_bytes", "kept containers, and what they wrote, beside the budget"),
        ("dry_run", "true if nothing was removed"),
    ),
    environment=(STORE_ENVIRONMENT,),
    see_also=("images", "rm", "pull", "unpin"),
)
_UNITS_S: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def add_arguments(parser: Parser) -> None:
    """Declare the options."""
    parser.add_argument(
        "-n", "--dry-run", action="store_true", help="only tell what would be removed"
    )
    parser.add_argument(
        "--older-than",
        metavar="AGE",
        type=age_s,
        default=0.0,
        help="keep images that were opened since then: 30m, 12h, 7d, 4w",
    )
    add_store_option(parser)
    add_output_options(parser)


def age_s(text: str) -> float:
    """``7d`` in seconds."""
    match = re.fullmatch(r"(\d{1,9})([smhdw])", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no age like 12h or 7d")
    return float(int(match[1]) * _UNITS_S[match[2]])


def run(args: Namespace) -> int:
    """Remove what nothing on this node uses any more, and print how much that was."""
    from lamina.cli.opening import node_store
    from lamina.opening.garbage_collection import collect_garbage
    from lamina.store.containers import list_containers

    store = node_store(args)
    found = collect_garbage(store, older_than_s=args.older_than, dry_run=args.dry_run)
    used, budget = store.space.used_bytes(), store.space.budget_bytes
    containers = list_containers(store.root)
    container_bytes = sum(each.disk_bytes for each in containers)
    if args.json:
        print_json(
            {
                **found._asdict(),
                "used_bytes": used,
                "budget_bytes": budget,
                "containers": len(containers),
                "container_bytes": container_bytes,
                "dry_run": args.dry_run,
            }
        )
        return 0
    freed = human_size(found.blob_bytes + found.file_bytes)
    did = "would remove" if args.dry_run else "removed"
    of_budget = "" if budget is None else f" of {human_size(budget)}"
    console.info(
        f"{did} {found.blobs} blobs and {found.files} metadata files, {freed}; "
        f"{human_size(used)}{of_budget} are in use"
    )
    if containers:
        kept = "1 kept container" if len(containers) == 1 else f"{len(containers)} kept containers"
        console.info(f"beside that {kept}, {human_size(container_bytes)}: `lamina images`")
    return 0
