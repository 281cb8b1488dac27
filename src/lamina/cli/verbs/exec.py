"""``lamina exec``."""

from __future__ import annotations

import argparse
from argparse import Namespace
from typing import Final

from lamina.cli.container_options import add_process_options, environment
from lamina.cli.container_verbs import named_container
from lamina.cli.help_text import HelpPage
from lamina.cli.options import STORE_ENVIRONMENT, add_output_options, add_store_option
from lamina.cli.parser import Parser
from lamina.errors import UsageError

HELP: Final = HelpPage(
    """
    Runs another command in a container that runs, detached or not, as the user, in the folder and
    with the environment of its first command unless others are given. All words after CONTAINER
    belong to the command.
    """,
    examples=(
        ("lamina exec web ps", "What runs in it."),
        ("lamina exec -it -u root web sh", "A shell in a terminal."),
    ),
    exit_note="""
    The exit code is that of the command, or 128 + N if signal N ended it. Of lamina itself are
    the following, as docker users know them:
    """,
    exit_codes=(
        ("125", "lamina or the container runtime failed, or there is no such container"),
        ("126", "the command is there but cannot be run"),
        ("127", "the container has no such command"),
    ),
    environment=(STORE_ENVIRONMENT,),
    see_also=("run", "ps", "logs"),
    failure_code=125,
)

REFUSED: Final = {
    "--detach-keys": "a terminal is never left; -d starts a command and leaves it",
    "--privileged": "a command has what its container has: start that with --cap-add",
}


def add_arguments(parser: Parser) -> None:
    """Declare the options and arguments."""
    parser.refused = REFUSED
    parser.add_argument("container", metavar="CONTAINER", help="name, as `lamina ps` lists it")
    parser.add_argument(
        "command", metavar="COMMAND", nargs=argparse.REMAINDER, help="with its arguments"
    )
    group = parser.add_argument_group("Options of the command")
    add = group.add_argument
    add("-d", "--detach", action="store_true", help="start it and leave it")
    add("-i", "--interactive", action="store_true", help="give the command the standard input")
    add("-t", "--tty", action="store_true", help="give the command the terminal")
    add_process_options(group)
    add_store_option(parser)
    add_output_options(parser, json=False)


def run(args: Namespace) -> int:
    """Run the command and return its exit code."""
    from lamina.cli import console
    from lamina.containers.entering import ExecOptions, enter
    from lamina.serve.run import require_terminal

    if not args.command:
        raise UsageError("exec wants a command", hint="lamina exec CONTAINER COMMAND")
    if args.tty and not args.detach:
        require_terminal()
    outcome = enter(
        named_container(args, args.container),
        ExecOptions(
            command=tuple(args.command),
            env=environment(args),
            workdir=args.workdir,
            user=args.user,
            terminal=args.tty and not args.detach,
            interactive=args.interactive,
            detached=args.detach,
        ),
    )
    if args.detach and outcome.failure:
        console.warning(outcome.failure)
    return outcome.exit_code
