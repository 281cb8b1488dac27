"""``lamina unpack``."""

from __future__ import annotations

from argparse import Namespace
from typing import Final

from lamina.cli.options import (
    REGISTRY_ENVIRONMENT,
    STORE_ENVIRONMENT,
    add_output_options,
    add_registry_options,
)
from lamina.cli.page import Page
from lamina.cli.parser import Parser

PAGE: Final = Page(
    """
    Turns a native image back into what other tools read: a folder with its tree, or an OCI image
    of one layer. Owners, modes, times, links, devices and extended attributes are kept, as far as
    the user may set them: as root all of them.

    DST is a folder if it starts with `/`, `./` or `../`; it is made, or must be empty. Else it is
    a reference, and the OCI image has the configuration of the native one.
    """,
    examples=(
        ("lamina unpack localhost:5000/debian ./rootfs", "A root file system in a folder."),
        ("lamina unpack oci:native:debian oci:images:debian", "An ordinary OCI image again."),
        ("lamina unpack localhost:5000/app oci-archive:app.tar", "The same in one file."),
    ),
    json_keys=(
        ("destination", "as given"),
        ("entries", "files, folders, links and devices that were written"),
        ("bytes", "content of the files"),
        ("digest", "of an OCI image: the digest of its manifest"),
    ),
    environment=(STORE_ENVIRONMENT, *REGISTRY_ENVIRONMENT),
    see_also=("convert", "cat"),
)


def add_arguments(parser: Parser) -> None:
    """Declare the options and arguments."""
    parser.add_argument("image", metavar="IMAGE", help="reference of a native image")
    parser.add_argument("destination", metavar="DST", help="a folder, or reference of an OCI image")
    add_registry_options(parser)
    add_output_options(parser)
