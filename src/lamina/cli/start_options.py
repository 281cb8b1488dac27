"""``--profile``: which start artifact of an image is used."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from lamina.cli.parser import Parser
    from lamina.oci.start_manifest import StartRule

NONE: Final = "none"


def add_profile_option(parser: Parser) -> None:
    """Declare it."""
    parser.add_argument(
        "--profile",
        metavar="NAME|none",
        help="which start artifact is used of those that `lamina profile` attached to the image, "
        "or none (that of the command, else the newest)",
    )


def start_rule(args: argparse.Namespace, command: Sequence[str] = ()) -> StartRule | None:
    """Return what the option says for a command; None if no artifact is to be used."""
    from lamina.oci.start_manifest import StartRule

    if args.profile == NONE:
        return None
    return StartRule(name=args.profile, command=tuple(command))
