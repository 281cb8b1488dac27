"""``lamina completion``."""

from __future__ import annotations

from argparse import Namespace
from typing import Final

from lamina.cli.help_text import HelpPage
from lamina.cli.options import add_output_options
from lamina.cli.output import print_json, print_text
from lamina.cli.parser import Parser

SHELLS: Final = ("bash", "zsh", "fish")

HELP: Final = HelpPage(
    """
    Prints a script that teaches a shell the verbs, options, choices and kinds of argument of
    this version of Lamina.  The script needs nothing but the shell.
    """,
    examples=(
        ("source <(lamina completion bash)", "In ~/.bashrc."),
        ("source <(lamina completion zsh)", "In ~/.zshrc, after compinit."),
        ("lamina completion fish | source", "In ~/.config/fish/config.fish."),
        (
            "lamina completion bash > /usr/share/bash-completion/completions/lamina",
            "For all users, loaded at the first use.",
        ),
    ),
    json_keys=(("shell", "name of the shell"), ("script", "the script")),
)


def add_arguments(parser: Parser) -> None:
    """Declare the arguments."""
    parser.add_argument("shell", choices=SHELLS, help="the shell that will read the script")
    add_output_options(parser)


def run(args: Namespace) -> int:
    """Print the script of one shell."""
    from lamina.cli.completion import scripts

    script = scripts()[args.shell]
    if args.json:
        print_json({"shell": args.shell, "script": script})
    else:
        print_text(script)
    return 0
