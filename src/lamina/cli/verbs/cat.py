"""``lamina cat``."""

from __future__ import annotations

from argparse import Namespace
from contextlib import closing
from io import BufferedReader
from typing import Final

from lamina.cli.help_text import HelpPage
from lamina.cli.options import (
    REGISTRY_ENVIRONMENT,
    STORE_ENVIRONMENT,
    add_output_options,
    add_registry_options,
)
from lamina.cli.output import print_bytes, print_json
from lamina.cli.parser import Parser

_READ_BYTES: Final = 1 << 20

HELP: Final = HelpPage(
    """
    Prints regular files of an image (or of a folder of this machine), one after the other,
    without mounting it. Only the chunks of these files are fetched; each is verified.
    """,
    examples=(
        (
            "lamina cat localhost:5000/node /etc/os-release",
            "Which distribution an image is made of.",
        ),
        ("lamina cat oci:images:node /usr/bin/node > node", "Take a program out."),
    ),
    json_note="One object a line for every file.",
    json_keys=(
        ("path", "absolute path in the image, links followed"),
        ("size", "bytes"),
        ("base64", "the content, in base64"),
    ),
    environment=(STORE_ENVIRONMENT, *REGISTRY_ENVIRONMENT),
    see_also=("ls", "unpack"),
)


def add_arguments(parser: Parser) -> None:
    """Declare the options and arguments."""
    parser.add_argument("image", metavar="IMAGE", help="reference of an image, or a folder")
    parser.add_argument("paths", metavar="PATH", nargs="+", help="regular files in the image")
    add_registry_options(parser)
    add_output_options(parser)


def run(args: Namespace) -> int:
    """Print the files."""
    from lamina.cli.opening import open_any

    with closing(open_any(args, args.image)) as image:
        for path in args.paths:
            with image.open(path) as file:
                (_print_object if args.json else _print_content)(path, file)
    return 0


def _print_content(_path: str, file: BufferedReader) -> None:
    while block := file.read(_READ_BYTES):
        print_bytes(block)


def _print_object(path: str, file: BufferedReader) -> None:
    import base64

    data = file.read()
    print_json({"path": path, "size": len(data), "base64": base64.b64encode(data).decode()})
