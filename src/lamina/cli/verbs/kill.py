"""``lamina kill``."""

from __future__ import annotations

from argparse import Namespace
from typing import Final

from lamina.cli.container_verbs import add_names, each_container
from lamina.cli.help_text import HelpPage
from lamina.cli.options import STORE_ENVIRONMENT, add_output_options
from lamina.cli.output import print_line
from lamina.cli.parser import Parser

HELP: Final = HelpPage(
    """
    Sends a signal to the first process of containers, KILL unless another one is given. It does not
    wait for their end.
    """,
    examples=(
        ("lamina kill web", "End it at once."),
        ("lamina kill -s HUP web", "Have it read its configuration anew."),
    ),
    environment=(STORE_ENVIRONMENT,),
    see_also=("stop", "ps", "wait"),
)


def add_arguments(parser: Parser) -> None:
    """Declare the options and arguments."""
    add_names(parser)
    parser.add_argument(
        "-s", "--signal", metavar="SIGNAL", default="KILL", help="name or number (%(default)s)"
    )
    add_output_options(parser, json=False)


def run(args: Namespace) -> int:
    """Send it to one after the other."""
    from lamina.containers.control import kill
    from lamina.containers.signals import signal_name

    number = signal_name(args.signal)
    for container in each_container(args):
        kill(container, number)
        print_line(container.name)
    return 0
