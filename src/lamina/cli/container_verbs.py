"""What the verbs of containers share: their names, and finding them."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from lamina.cli.options import add_store_option
from lamina.cli.parser import Parser

if TYPE_CHECKING:
    from lamina.containers.places import Container


def add_names(parser: Parser) -> None:
    """Declare one or more containers, and the store of those that have ended."""
    parser.add_argument(
        "containers", metavar="CONTAINER", nargs="+", help="name, as `lamina ps` lists it"
    )
    add_store_option(parser)


def each_container(args: Namespace) -> Iterator[Container]:
    """Yield the containers that are named.  Raises NotFoundError at the first that is not there."""
    for name in args.containers:
        yield named_container(args, name)


def named_container(args: Namespace, name: str) -> Container:
    """Return one.  Raises NotFoundError."""
    from lamina.containers.places import find_container

    return find_container(name, store_root(args))


def store_root(args: Namespace) -> Path:
    """Return where the store is, which need not be there yet."""
    from lamina.store.node import default_root

    return Path(args.store) if args.store is not None else Path(default_root())
