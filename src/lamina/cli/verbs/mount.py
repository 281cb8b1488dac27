"""``lamina mount``."""

from __future__ import annotations

from argparse import Namespace
from typing import Final

from lamina.cli.options import (
    REGISTRY_ENVIRONMENT,
    STORE_ENVIRONMENT,
    add_device_option,
    add_output_options,
    add_registry_options,
)
from lamina.cli.page import Page
from lamina.cli.parser import Parser

PAGE: Final = Page(
    """
    Mounts a native image read-only on a folder and returns as soon as its tree can be read. A
    server stays behind, which fetches and verifies what is read; `lamina umount` ends it. With
    --foreground the server is this process, and ends the mount when it is told to stop.

    A reader gets the right bytes, waits, or gets an error: EIO for damaged data, ETIMEDOUT or EIO
    when the registry does not deliver, ENOSPC when the store is full. The server's log says why.
    """,
    examples=(
        ("lamina mount localhost:5000/node /mnt", "Then look around in /mnt."),
        ("lamina mount --device fuse oci:native:debian ~/debian", "Without root."),
        ("lamina mount --foreground -v IMAGE /mnt", "Watch what is fetched, stop with ^C."),
    ),
    json_keys=(
        ("image", "the reference, with the digest it had"),
        ("mountpoint", "absolute path of the folder"),
        ("device", "fanotify, fuse-blob or fuse"),
        ("pid", "process id of the server"),
    ),
    environment=(STORE_ENVIRONMENT, *REGISTRY_ENVIRONMENT),
    see_also=("umount", "mounts", "run"),
)


def add_arguments(parser: Parser) -> None:
    """Declare the options and arguments."""
    parser.add_argument("image", metavar="IMAGE", help="reference of a native image")
    parser.add_argument("folder", metavar="DIR", help="existing folder to mount on")
    add_device_option(parser)
    parser.add_argument(
        "--foreground", action="store_true", help="serve in this process until it is stopped"
    )
    add_registry_options(parser)
    add_output_options(parser)
