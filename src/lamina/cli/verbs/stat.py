"""``lamina stat``."""

from __future__ import annotations

import os
import stat as bits
from argparse import Namespace
from contextlib import closing
from typing import TYPE_CHECKING, Any, Final

from lamina.cli.file_listing import ENTRY_KEYS, entry_object, utc_time
from lamina.cli.help_text import HelpPage
from lamina.cli.options import (
    REGISTRY_ENVIRONMENT,
    STORE_ENVIRONMENT,
    add_output_options,
    add_registry_options,
)
from lamina.cli.output import human_size, print_json, print_line, shown_name
from lamina.cli.parser import Parser

if TYPE_CHECKING:
    from lamina.image.base import Image, Stat

HELP: Final = HelpPage(
    """
    Shows what an image (or a folder of this machine) knows of a path: kind, mode, owner, times,
    links, extended attributes. A symlink at the end of PATH is shown itself unless -L is given.
    """,
    examples=(
        ("lamina stat localhost:5000/debian /usr/bin/passwd", "Is it set-user-ID?"),
        (
            "lamina stat --json IMAGE /usr/bin/ping | jq .xattrs",
            "The file capabilities of a program.",
        ),
    ),
    json_note="One object a line for every path.",
    json_keys=(*ENTRY_KEYS, ("xattrs", "extended attributes: full name to value in hexadecimal")),
    environment=(STORE_ENVIRONMENT, *REGISTRY_ENVIRONMENT),
    see_also=("ls", "cat"),
)


def add_arguments(parser: Parser) -> None:
    """Declare the options and arguments."""
    parser.add_argument("image", metavar="IMAGE", help="reference of an image, or a folder")
    parser.add_argument("paths", metavar="PATH", nargs="+", help="paths in the image")
    parser.add_argument(
        "-L", "--dereference", action="store_true", help="follow a symlink at the end of PATH"
    )
    add_registry_options(parser)
    add_output_options(parser)


def run(args: Namespace) -> int:
    """Show the paths."""
    from lamina.cli.opening import open_any

    with closing(open_any(args, args.image)) as image:
        for path in args.paths:
            stat = image.stat(path, follow_symlinks=args.dereference)
            xattrs = image.xattrs(stat)
            if args.json:
                print_json({**entry_object(image, stat), "xattrs": _hex_values(xattrs)})
            else:
                _print_text(image, stat, xattrs)
    return 0


def _hex_values(xattrs: dict[bytes, bytes]) -> dict[str, str]:
    return {os.fsdecode(name): value.hex() for name, value in sorted(xattrs.items())}


def _print_text(image: Image, stat: Stat, xattrs: dict[bytes, bytes]) -> None:
    entry: dict[str, Any] = entry_object(image, stat)
    shown = shown_name(stat.path)
    if stat.is_symlink:
        shown += f" -> {shown_name(os.fsencode(entry['target']))}"
    device = f", device {stat.device[0]},{stat.device[1]}" if stat.is_device else ""
    print_line(shown)
    print_line(f"  kind    {entry['type']}{device}")
    print_line(f"  mode    {entry['mode']} ({bits.filemode(stat.mode)})")
    print_line(f"  owner   {stat.uid}:{stat.gid}")
    print_line(f"  size    {stat.size} ({human_size(stat.size)})")
    print_line(f"  changed {utc_time(stat.mtime)}.{stat.mtime_ns:09d} UTC")
    print_line(f"  links   {stat.nlink}, inode {stat.ino}")
    for name, value in sorted(xattrs.items()):
        print_line(f"  xattr   {shown_name(name)} = {_shown_value(value)}")


def _shown_value(value: bytes) -> str:
    text = value.rstrip(b"\0").decode("ascii", errors="replace")
    return (
        f'"{text}"' if text and text.isprintable() and "\ufffd" not in text else f"0x{value.hex()}"
    )
