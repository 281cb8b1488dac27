"""``lamina service``."""

from __future__ import annotations

from argparse import Namespace
from typing import Final

from lamina.cli import story
from lamina.cli.options import add_output_options
from lamina.cli.output import print_json
from lamina.cli.page import Page
from lamina.cli.parser import Parser
from lamina.errors import NotFoundError

PAGE: Final = Page(
    """
    `lamina mount` starts the service of the mounts when it needs it, and the last `lamina umount`
    ends it. `service run` is that service in the foreground, without end, for a unit of a service
    manager: Type=notify, NotifyAccess=all, and FileDescriptorStoreMax=512, with which the mounts
    survive even the death of all its processes. Stopped by SIGTERM it unmounts everything, unless a
    service manager keeps the mounts.

    `service upgrade` starts a service of the program as it is now, which takes over all mounts
    while they are read, as SIGHUP to the supervisor does.
    """,
    examples=(("lamina service upgrade", "After a new version was installed."),),
    json_keys=(("upgraded", "true"),),
    see_also=("mount", "mounts"),
)


def add_arguments(parser: Parser) -> None:
    """Declare the arguments."""
    parser.add_argument("action", choices=("run", "upgrade"), help="what to do")
    add_output_options(parser)


def run(args: Namespace) -> int:
    """Do it."""
    if args.action == "run":
        from lamina.serve.service.start import main

        main(())
        return 0
    from lamina.serve.service.client import upgrade_service

    if not upgrade_service():
        raise NotFoundError("no mount service runs", hint="lamina mount starts one")
    if args.json:
        print_json({"upgraded": True})
    else:
        story.tell("the mount service is replaced")
    return 0
