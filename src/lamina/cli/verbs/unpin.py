"""``lamina unpin``."""

from __future__ import annotations

from argparse import Namespace
from typing import Final

from lamina.cli.help_text import HelpPage
from lamina.cli.options import STORE_ENVIRONMENT, add_output_options, add_store_option
from lamina.cli.output import print_json, print_line
from lamina.cli.parser import Parser
from lamina.errors import NotFoundError

HELP: Final = HelpPage(
    """
    Lets go of images that `lamina pull --resident` keeps: they may be evicted and collected again,
    and their tags mean what the registry says. Nothing is removed at once. Without IMAGE it lists
    the images that are kept.
    """,
    examples=(
        ("lamina unpin", "What is resident?"),
        ("lamina unpin localhost:5000/node && lamina gc", "Free its space."),
    ),
    json_note="One object a line for every image.",
    json_keys=(
        ("reference", "as it was pulled"),
        ("digest", "of the manifest that it means here"),
    ),
    environment=(STORE_ENVIRONMENT,),
    see_also=("pull", "gc"),
)


def add_arguments(parser: Parser) -> None:
    """Declare the options and arguments."""
    parser.add_argument("images", metavar="IMAGE", nargs="*", help="reference, as it was pulled")
    add_store_option(parser)
    add_output_options(parser)


def run(args: Namespace) -> int:
    """List the resident images, or let go of some."""
    from lamina.cli.opening import node_store
    from lamina.oci.reference import parse_reference

    store = node_store(args)
    names = [str(parse_reference(text)) for text in args.images]
    for name in names:
        if store.records.resident(name) is None:
            raise NotFoundError(f"{name} is not resident", hint="lamina unpin lists what is")
    for record in store.records.residents():
        if names and record.name not in names:
            continue
        if args.json:
            print_json({"reference": record.name, "digest": record.digest})
        elif not names:
            print_line(f"{record.name} {record.digest}")
    for name in names:
        store.records.release_resident(name)
    return 0
