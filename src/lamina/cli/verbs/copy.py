"""``lamina copy``."""

from __future__ import annotations

from argparse import Namespace
from typing import Final

from lamina.cli import story
from lamina.cli.options import REGISTRY_ENVIRONMENT, add_output_options, add_pair_options
from lamina.cli.output import human_size, print_json, print_line
from lamina.cli.page import Page
from lamina.cli.parser import Parser
from lamina.cli.progress import open_meter
from lamina.errors import UsageError

PAGE: Final = Page(
    """
    Copies an image as it is, whatever its kind, between registries, OCI layout folders and
    archives. Manifests keep their bytes, so digests do not change; blobs that are there already
    are not sent again, and within one registry they are taken over without moving.

    Of a multi-platform image one platform is copied, or with --all the index and everything in
    it. Every blob is verified on its way.
    """,
    examples=(
        ("lamina copy oci:native:debian localhost:5000/debian", "Push what was converted."),
        ("lamina copy --all localhost:5000/app:1 registry.example/app:1", "Mirror an image."),
        ("lamina copy localhost:5000/app oci-archive:app.tar", "Save an image in a file."),
    ),
    json_keys=(
        ("digest", "digest of the manifest or index that was copied"),
        ("media_type", "its media type"),
        ("reference", "where it was written"),
        ("manifests", "number of manifests and indexes"),
        ("blobs, bytes", "number and size of their blobs, those that were there already included"),
    ),
    environment=REGISTRY_ENVIRONMENT,
    see_also=("convert", "inspect"),
)


def add_arguments(parser: Parser) -> None:
    """Declare the options and arguments."""
    parser.add_argument("source", metavar="SRC", help="reference of an image")
    parser.add_argument("destination", metavar="DST", help="where it goes")
    parser.add_argument(
        "-a", "--all", action="store_true", help="copy all platforms of a multi-platform image"
    )
    add_pair_options(parser, many_platforms=False)
    add_output_options(parser)


def run(args: Namespace) -> int:
    """Copy, and tell the digest."""
    from lamina.cli.opening import open_pair
    from lamina.registry.copy import plan_copy, run_copy
    from lamina.registry.platform import host_platform

    if args.all and args.platform:
        raise UsageError("--all copies all platforms, --platform one", hint="leave one of them out")
    with open_pair(args) as (origin, target), open_meter() as meter:
        only = None if args.all else args.platform or str(host_platform())
        # An image that is for one platform must be for the one that was asked for.
        plan = plan_copy(origin, only=only, platforms=[args.platform] if args.platform else None)
        advance = meter.add("copy", plan.size_bytes)
        root = run_copy(plan, origin, target, progress=lambda _, moved: advance(moved))
    if args.json:
        print_json(
            {
                "digest": root.digest,
                "media_type": root.media_type,
                "reference": args.destination,
                "manifests": len(plan.manifests),
                "blobs": len(plan.blobs),
                "bytes": plan.size_bytes,
            }
        )
        return 0
    print_line(root.digest)
    story.tell(f"{len(plan.blobs)} blobs, {human_size(plan.size_bytes)}")
    return 0
