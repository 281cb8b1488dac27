"""Options of what runs inside of a confidential guest."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from lamina.cli import console
from lamina.errors import UsageError

if TYPE_CHECKING:
    import argparse

    from lamina.cli.parser import Parser
    from lamina.guest.agent import GuestSettings

_DEFAULT_WORK: Final = "/run/lamina-guest"


def add_guest_options(parser: Parser) -> argparse._ArgumentGroup:
    """``--init-data``, ``--evidence`` and ``--work``; their group, for more."""
    group = parser.add_argument_group("Guest options")
    group.add_argument(
        "--init-data", metavar="FILE", help="init-data that this machine was started with"
    )
    group.add_argument(
        "--evidence",
        choices=("tsm", "sample"),
        default="tsm",
        metavar="tsm|sample",
        help="how the machine proves itself: by a report of TDX or SEV-SNP, or not at all "
        "(%(default)s)",
    )
    group.add_argument(
        "--work", metavar="DIR", default=_DEFAULT_WORK, help="work folder (%(default)s)"
    )
    return group


def guest_settings(
    args: Namespace,
    *,
    cache: str | None = None,
    cache_only: bool = False,
    blob_dirs: tuple[str, ...] = (),
) -> GuestSettings:
    """Return what the options say, and protect this process.  Raises UsageError."""
    from lamina.cli.key_options import protect_process
    from lamina.guest.agent import GuestSettings

    if args.init_data is None:
        raise UsageError("nothing says what this guest believes", hint="--init-data FILE")
    protect_process()
    if args.evidence == "sample":
        console.warning("sample evidence proves nothing: for tests only")
    return GuestSettings(
        work=Path(args.work),
        init_data=args.init_data,
        evidence=args.evidence,
        cache=cache,
        cache_only=cache_only,
        blob_dirs=blob_dirs,
    )
