"""``lamina run``."""

from __future__ import annotations

import argparse
from argparse import Namespace
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final

from lamina.cli import console
from lamina.cli.container_names import written_id
from lamina.cli.container_options import (
    add_container_options,
    add_run_options,
    container_options,
)
from lamina.cli.help_text import HelpPage
from lamina.cli.key_options import forget_passphrases
from lamina.cli.options import (
    REGISTRY_ENVIRONMENT,
    STORE_ENVIRONMENT,
    add_output_options,
    add_registry_options,
)
from lamina.cli.output import print_line
from lamina.cli.parser import Parser
from lamina.cli.start_options import add_profile_option, start_rule
from lamina.cli.start_plan_options import (
    add_complete_options,
    add_plan_option,
    check_complete_options,
    follow_plan,
)
from lamina.errors import Error, UsageError

if TYPE_CHECKING:
    from lamina.serve.run import RunRequest

HELP: Final = HelpPage(
    """
    Starts a container of a native or indexed image at once: it is mounted, not pulled, and its
    files arrive when they are read. The command is that of the image unless one is given; all
    words after IMAGE belong to it. The container's output and exit code are those of lamina.

    The container is made by runc or crun with docker's default capabilities and masked paths.
    It sees the network of the host unless `--network none` is given. What it writes goes to a
    folder in the node store: that is removed with --rm, and otherwise kept, if anything was
    written, and named at the end.

    Without -i standard input is empty. With -t the container has a terminal, which must be the
    one that lamina runs in. Signals are passed on to the command.

    With --plan it says before the start what it expects to fetch and how long that takes, by the
    image's size, its prefetch list, and what is known of the link to the registry.

    When lamina is killed, the container is killed and everything is unmounted.

    With -d the container goes on without lamina: its name is printed, two small processes look
    after it, and `lamina ps`, `exec`, `logs`, `stop`, `wait` and `rm` are about it. It is kept when
    it has ended, with its log and exit code, unless --rm is given. The runtime knows it too:
    `runc --root /run/lamina/runtime list`.
    """,
    examples=(
        (
            "lamina run --rm localhost:5000/node node -v",
            "Print a version, fetching what that takes.",
        ),
        ("lamina run --rm -it localhost:5000/debian", "A shell in a terminal."),
        (
            "lamina run --rm -v ./src:/src:ro -w /src oci:images:python python3 -m unittest",
            "Run the tests of a folder of the host.",
        ),
        (
            "tar c . | lamina run --rm -i --network none localhost:5000/debian sha256sum",
            "Use it as a filter that reaches no network.",
        ),
    ),
    exit_note="""
    The exit code is that of the command, or 128 + N if signal N ended it. Of lamina itself are
    the following, as docker users know them:
    """,
    exit_codes=(
        (
            "125",
            "lamina or the container runtime failed before the command ran, or while it did",
        ),
        ("126", "the command is there but cannot be run"),
        ("127", "the image has no such command"),
    ),
    environment=(STORE_ENVIRONMENT, *REGISTRY_ENVIRONMENT),
    see_also=("ps", "exec", "logs", "stop", "mount", "profile"),
    failure_code=125,
)


def add_arguments(parser: Parser) -> None:
    """Declare the options and arguments."""
    parser.add_argument("image", metavar="IMAGE", help="reference of a native or indexed image")
    parser.add_argument(
        "command",
        metavar="COMMAND",
        nargs=argparse.REMAINDER,
        help="what to run instead of the image's command, with its arguments",
    )
    add_container_options(parser)
    add_run_options(parser)
    add_profile_option(parser)
    add_plan_option(parser)
    add_complete_options(parser)
    add_registry_options(parser)
    # Standard output is the container's, so there is no --json; -v is docker's.
    add_output_options(parser, short_verbose=False, short_help=False, json=False)


def run(args: Namespace) -> int:
    """Run the container and return its exit code."""
    from lamina.cli.opening import index_and_tell
    from lamina.containers.foreground import run_container

    planner = partial(follow_plan, args.plan) if args.plan else None
    request = run_request(args)
    if args.detach:
        return _run_detached(args, request)
    with written_id(args.cidfile, request.name) as name:
        request = replace(request, name=name)
        result = run_container(request, indexer=index_and_tell, planner=planner)
    if result.changes is not None:
        console.info(
            f"what the container wrote is kept in {result.changes}", changes=result.changes
        )
    return result.exit_code


def _run_detached(args: Namespace, request: RunRequest) -> int:
    """Start it, print its name, and leave it."""
    from lamina.cli.opening import index_and_tell
    from lamina.containers.detached import run_detached

    if args.plan:
        raise UsageError("--plan tells what came after the end, and goes without -d")
    with written_id(args.cidfile, request.name) as name:
        named, outcome = run_detached(replace(request, name=name), indexer=index_and_tell)
    if outcome.failure:
        console.report_error(Error(outcome.failure))
        return outcome.exit_code
    print_line(named)
    return 0


def run_request(args: Namespace) -> RunRequest:
    """Return the request that the arguments make, with nothing left to be asked: the serving
    process has no terminal.
    """
    from lamina.cli.opening import open_request
    from lamina.opening.request import for_another_process
    from lamina.serve.run import RunRequest

    check_complete_options(args)
    start = start_rule(args, args.command)
    image = for_another_process(open_request(args, args.image, start=start))
    forget_passphrases()
    return RunRequest(
        image=image,
        options=container_options(args),
        device=args.device,
        complete=args.complete,
        limit_rate=args.limit_rate,
        name=args.name,
        runtime=args.runtime,
        keep_changes=not args.rm,
    )
