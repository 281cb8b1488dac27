"""``lamina wait``."""

from __future__ import annotations

from argparse import Namespace
from typing import Final

from lamina.cli.container_verbs import add_names, each_container
from lamina.cli.help_text import HelpPage
from lamina.cli.options import STORE_ENVIRONMENT, add_output_options
from lamina.cli.output import print_json, print_line
from lamina.cli.parser import Parser

HELP: Final = HelpPage(
    """
    Waits until containers have ended, and prints their exit codes, one a line. Of a container that
    has ended already and is kept, it prints the exit code at once.
    """,
    examples=(("lamina wait web", "Print what it ended with."),),
    json_note="One object a line for every container.",
    json_keys=(("container", "its name"), ("exit_code", "what it ended with")),
    environment=(STORE_ENVIRONMENT,),
    see_also=("stop", "ps", "logs"),
)


def add_arguments(parser: Parser) -> None:
    """Declare the options and arguments."""
    add_names(parser)
    add_output_options(parser)


def run(args: Namespace) -> int:
    """Wait for all of them."""
    from lamina.containers.control import wait

    # Found first: one that is removed at its end is not there afterwards.
    for container in list(each_container(args)):
        code = wait(container)
        if args.json:
            print_json({"container": container.name, "exit_code": code})
        else:
            print_line(str(code))
    return 0
