"""``lamina mounts``."""

from __future__ import annotations

from argparse import Namespace
from typing import Final

from lamina.cli.options import add_output_options
from lamina.cli.output import print_json, print_line, print_table
from lamina.cli.page import Page
from lamina.cli.parser import Parser

PAGE: Final = Page(
    """
    Lists the images that this user mounted with `lamina mount`, and the process that serves each.
    A mount is `served`; `broken` if its server is gone, so that reads of what is not in memory
    fail; or `detached` after a lazy unmount, while somebody still uses it.
    """,
    examples=(
        ("lamina mounts", "A table."),
        ("lamina mounts --json | jq -r .image", "The references that are in use."),
    ),
    json_note="One object a line for every mount.",
    json_keys=(
        ("mountpoint", "absolute path of the folder"),
        ("image", "the reference, with the digest it had"),
        ("device", "fanotify, fuse-blob or fuse"),
        ("pid", "process id of the server"),
    ),
    see_also=("mount", "umount"),
)


def add_arguments(parser: Parser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--mountpoints", action="store_true", help="print the folders only, one a line"
    )
    add_output_options(parser)


def run(args: Namespace) -> int:
    """List the mounts."""
    from lamina.cli.verbs.mount import record_object
    from lamina.serve.mounts import list_mounts

    mounts = list_mounts()
    if args.mountpoints:
        for record, _ in mounts:
            print_line(record.mountpoint)
    elif args.json:
        for record, state in mounts:
            print_json({**record_object(record), "state": str(state)})
    elif mounts:
        rows = [("MOUNTPOINT", "IMAGE", "DEVICE", "STATE", "PID")]
        rows += [
            (record.mountpoint, record.image, record.device, str(state), str(record.pid))
            for record, state in mounts
        ]
        print_table(rows)
    return 0
