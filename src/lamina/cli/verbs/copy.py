"""``lamina copy``."""

from __future__ import annotations

from argparse import Namespace
from typing import Final

from lamina.cli.options import (
    REGISTRY_ENVIRONMENT,
    add_output_options,
    add_pair_options,
    pair_options,
)
from lamina.cli.output import human_size, print_json, print_line
from lamina.cli.page import Page
from lamina.cli.parser import Parser
from lamina.cli.progress import open_meter

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
        ("blobs, bytes", "number and size of the blobs of the image"),
        ("copied_blobs, copied_bytes", "those of them that were not there yet"),
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
    from lamina.registry.copy import copy_image
    from lamina.registry.reference import parse_reference
    from lamina.registry.repository import open_repository

    source_options, destination_options = pair_options(args)
    source = parse_reference(args.source)
    destination = parse_reference(args.destination)
    with (
        open_repository(source, options=source_options) as origin,
        open_repository(destination, write=True, options=destination_options) as target,
        open_meter() as meter,
    ):
        report = copy_image(
            origin, target, platform=args.platform, everything=args.all, watch=meter.add
        )
    if args.json:
        print_json(
            {
                "digest": report.descriptor.digest,
                "media_type": report.descriptor.media_type,
                "reference": args.destination,
                "blobs": report.blobs,
                "bytes": report.total_bytes,
                "copied_blobs": report.copied_blobs,
                "copied_bytes": report.copied_bytes,
            }
        )
    else:
        print_line(report.descriptor.digest)
        moved = f"{report.copied_blobs} of {report.blobs} blobs"
        from lamina.cli import story

        story.tell(
            f"copied {moved}, {human_size(report.copied_bytes)} of {human_size(report.total_bytes)}"
        )
    return 0
