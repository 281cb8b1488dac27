"""``lamina mounts``."""

from __future__ import annotations

from argparse import Namespace
from typing import Final

from lamina.cli.options import add_output_options
from lamina.cli.page import Page
from lamina.cli.parser import Parser

PAGE: Final = Page(
    """
    Lists the images that are mounted by `lamina mount`, with the process that serves each and how
    much of it is on this machine.
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
