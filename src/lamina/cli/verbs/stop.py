"""``lamina stop``."""

from __future__ import annotations

from argparse import Namespace
from typing import Final

from lamina.cli.container_verbs import add_names, each_container
from lamina.cli.help_text import HelpPage
from lamina.cli.options import STORE_ENVIRONMENT, add_output_options
from lamina.cli.output import print_json, print_line
from lamina.cli.parser import Parser
from lamina.errors import UsageError

HELP: Final = HelpPage(
    """
    Asks containers to end, with the signal that they were started with (--stop-signal, else the
    image's, else TERM), and kills those that are still there some seconds later. Returns when
    nothing of them runs and everything is unmounted.
    """,
    examples=(
        ("lamina stop web", "With the time it was started with, or ten seconds."),
        ("lamina stop -t 60 web db", "With a minute."),
    ),
    json_note="One object a line for every container.",
    json_keys=(("container", "its name"), ("exit_code", "what it ended with")),
    environment=(STORE_ENVIRONMENT,),
    see_also=("ps", "kill", "wait", "rm"),
)


def add_arguments(parser: Parser) -> None:
    """Declare the options and arguments."""
    add_names(parser)
    parser.add_argument(
        "-t",
        "--timeout",
        "--time",
        metavar="SECONDS",
        help="how long to wait; -1 for ever",
    )
    parser.add_argument("-s", "--signal", metavar="SIGNAL", help="what is sent first")
    add_output_options(parser)


def run(args: Namespace) -> int:
    """Stop one after the other."""
    from lamina.cli.container_values import seconds
    from lamina.containers.control import stop, wait
    from lamina.containers.signals import signal_name

    timeout_s = None if args.timeout is None else seconds(args.timeout)
    number = None if args.signal is None else signal_name(args.signal)
    if not args.containers:
        raise UsageError("stop wants a container", hint="`lamina ps` lists them")
    for container in each_container(args):
        stop(container, timeout_s, number)
        if args.json:
            print_json({"container": container.name, "exit_code": wait(container)})
        else:
            print_line(container.name)
    return 0
