"""``lamina ls``."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterable, Iterator
from contextlib import closing
from itertools import islice
from typing import TYPE_CHECKING, Final

from lamina.cli.file_listing import ENTRY_KEYS, entry_object, long_row
from lamina.cli.help_text import HelpPage
from lamina.cli.options import (
    REGISTRY_ENVIRONMENT,
    STORE_ENVIRONMENT,
    add_output_options,
    add_registry_options,
)
from lamina.cli.output import print_json, print_line, print_table, shown_name
from lamina.cli.parser import Parser

if TYPE_CHECKING:
    from lamina.image.base import Image, Stat

_ROWS_ALIGNED: Final = 1000

HELP: Final = HelpPage(
    """
    Lists a directory of an image (or of a folder of this machine) without mounting it. Only
    metadata is fetched. Names are in byte order; unprintable bytes are shown as \\xNN. A symlink
    in PATH is followed, also at its end.
    """,
    examples=(
        ("lamina ls localhost:5000/node /usr/lib", "Names, one a line."),
        (
            "lamina ls -lR oci:images:node",
            "The whole tree with modes, owners, sizes and times (UTC).",
        ),
        (
            "lamina ls -R --json IMAGE | jq -r 'select(.size > 1e7) | .path'",
            "Paths of files above 10 MB.",
        ),
    ),
    json_note="One object a line for every entry.",
    json_keys=ENTRY_KEYS,
    environment=(STORE_ENVIRONMENT, *REGISTRY_ENVIRONMENT),
    see_also=("stat", "cat", "inspect"),
)


def add_arguments(parser: Parser) -> None:
    """Declare the options and arguments."""
    parser.add_argument("image", metavar="IMAGE", help="reference of an image, or a folder")
    parser.add_argument(
        "path", metavar="PATH", nargs="?", default="/", help="path in the image (the root)"
    )
    parser.add_argument(
        "-l",
        "--long",
        action="store_true",
        help="show mode, links, owner, group, size, time, target",
    )
    parser.add_argument(
        "-R", "--recursive", action="store_true", help="list all below, each with its whole path"
    )
    add_registry_options(parser)
    add_output_options(parser)


def run(args: Namespace) -> int:
    """List a directory, or show a file."""
    from lamina.cli.opening import open_any

    with closing(open_any(args, args.image)) as image:
        entries = _entries(image, image.stat(args.path), recursive=args.recursive)
        if args.json:
            for _, stat in entries:
                print_json(entry_object(image, stat))
        elif args.long:
            _print_long(image, entries)
        else:
            for name, _ in entries:
                print_line(shown_name(name))
    return 0


def _entries(image: Image, stat: Stat, *, recursive: bool) -> Iterable[tuple[bytes, Stat]]:
    if not stat.is_dir:
        return [(stat.path, stat)]
    return image.walk(stat) if recursive else image.scandir(stat)


def _print_long(image: Image, entries: Iterable[tuple[bytes, Stat]]) -> None:
    """Aligned by the thousand, so that the first lines of a big tree come at once."""
    rows: Iterator[tuple[str, ...]] = (long_row(image, name, stat) for name, stat in entries)
    while batch := list(islice(rows, _ROWS_ALIGNED)):
        print_table(batch, right=frozenset((1, 2, 3, 4)))
