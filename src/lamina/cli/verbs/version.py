"""``lamina version``."""

from __future__ import annotations

from argparse import Namespace
from typing import Final

from lamina.cli.help_text import HelpPage
from lamina.cli.options import add_output_options
from lamina.cli.output import print_json, print_line
from lamina.cli.parser import Parser
from lamina.version import VERSION

HELP: Final = HelpPage(
    "Prints the version of Lamina and of the Python that runs it.",
    examples=(("lamina version", "One line for a bug report."),),
    json_keys=(
        ("lamina", "version of Lamina"),
        ("python", "version of Python"),
        ("machine", "kernel name, release and architecture"),
    ),
    see_also=("self-test",),
)


def add_arguments(parser: Parser) -> None:
    """Declare the options."""
    add_output_options(parser)


def run(args: Namespace) -> int:
    """Print the version."""
    import os
    import sys

    python = ".".join(str(part) for part in sys.version_info[:3])
    system = os.uname()
    if args.json:
        machine = f"{system.sysname} {system.release} {system.machine}"
        print_json({"lamina": VERSION, "python": python, "machine": machine})
    else:
        print_line(f"lamina {VERSION} (Python {python})")
    return 0
