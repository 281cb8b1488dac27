"""``lamina run``."""

from __future__ import annotations

import argparse
import os
from argparse import Namespace
from typing import TYPE_CHECKING, Final

from lamina.cli import story
from lamina.cli.container_options import add_container_options, container_options
from lamina.cli.key_options import forget_passphrases, key_texts_for_later
from lamina.cli.options import (
    REGISTRY_ENVIRONMENT,
    STORE_ENVIRONMENT,
    add_device_option,
    add_output_options,
    add_registry_options,
    ask_credentials,
)
from lamina.cli.page import Page
from lamina.cli.parser import Parser
from lamina.cli.planning import (
    PlannedMount,
    add_complete_options,
    add_plan_option,
    check_complete_options,
    complete_in_background,
    follow_plan,
)

if TYPE_CHECKING:
    from lamina.image.native import NativeImage
    from lamina.serve.run import RunRequest, Unmountable

PAGE: Final = Page(
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
    see_also=("mount", "inspect"),
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
    add_device_option(parser)
    add_plan_option(parser)
    add_complete_options(parser)
    add_registry_options(parser)
    # Standard output is the container's, so there is no --json; -v is docker's.
    add_output_options(parser, short_verbose=False, json=False)


def run(args: Namespace) -> int:
    """Run the container and return its exit code."""
    from lamina.serve.run import run_container

    result = run_container(run_request(args))
    if result.changes is not None:
        story.tell(f"what the container wrote is kept in {result.changes}", changes=result.changes)
    return result.exit_code


def run_request(args: Namespace) -> RunRequest:
    """The request that the arguments make."""
    from lamina.serve.run import RunRequest
    from lamina.store.node import default_root

    check_complete_options(args)
    # Asked now, because the serving process has no terminal.
    ask_credentials(args)
    args.decryption_key = key_texts_for_later(args.decryption_key)
    forget_passphrases()
    for name in ("kbs_ca", "kbs_init_data"):
        path = getattr(args, name)
        setattr(args, name, path and os.path.abspath(path))

    def open_image() -> NativeImage:
        from lamina.cli.opening import open_native

        return open_native(args, args.image)

    def mount(image: NativeImage, mountpoint: str) -> Unmountable:
        from lamina.serve.mount import mount_image

        plan = follow_plan(args.plan, image) if args.plan else None
        # Only the container sees this mount, and it is the container's root.
        mounted = mount_image(
            image, mountpoint, device=args.device, options=("suid", "dev"), as_lower=True
        )
        complete_in_background(args, image)
        return mounted if plan is None else PlannedMount(image, plan, mounted)

    return RunRequest(
        open_image=open_image,
        mount=mount,
        options=container_options(args),
        store_root=os.path.abspath(args.store) if args.store else str(default_root()),
        name=args.name,
        runtime=args.runtime,
        keep_changes=not args.rm,
    )
