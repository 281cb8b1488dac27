"""``lamina coverage``."""

from __future__ import annotations

import os
from argparse import Namespace
from typing import TYPE_CHECKING, Final

from lamina.cli.help_text import HelpPage
from lamina.cli.options import (
    REGISTRY_ENVIRONMENT,
    STORE_ENVIRONMENT,
    add_output_options,
    add_registry_options,
)
from lamina.cli.output import human_size, print_json, print_line, print_table, share, shown_name
from lamina.cli.parser import Parser

if TYPE_CHECKING:
    from lamina.content.residency import BlobCoverage, FileCoverage

HELP: Final = HelpPage(
    """
    Tells how much of a native image is on this node, by blob, and with --files by file. Fetches
    nothing but the image's metadata.
    """,
    examples=(
        ("lamina coverage localhost:5000/node", "A line for every blob."),
        (
            "lamina coverage --files --json IMAGE | jq -r 'select(.ready_bytes > 0).path'",
            "Which files have been read.",
        ),
    ),
    json_note="One object a line for every blob, and then for every file.",
    json_keys=(
        ("blob", "id of the blob"),
        ("path", "of the file, instead of blob"),
        ("ready_bytes, size", "plain bytes that are here, and all"),
        ("ready_chunks, chunks", "of a blob: the same in chunks"),
    ),
    environment=(STORE_ENVIRONMENT, *REGISTRY_ENVIRONMENT),
    see_also=("pull", "prefetch", "inspect"),
)


def add_arguments(parser: Parser) -> None:
    """Declare the options and arguments."""
    parser.add_argument("image", metavar="IMAGE", help="reference of a native or indexed image")
    parser.add_argument("--files", action="store_true", help="tell of every file too")
    add_registry_options(parser)
    add_output_options(parser)


def run(args: Namespace) -> int:
    """Print how much is here."""
    from lamina.cli.opening import open_native
    from lamina.content.residency import blob_coverage, file_coverage

    with open_native(args, args.image) as image:
        blobs = blob_coverage(image)
        files = list(file_coverage(image)) if args.files else []
    if args.json:
        _print_objects(blobs, files)
        return 0
    rows = [("BLOB", "READY", "SIZE", "SHARE", "CHUNKS")]
    rows += [
        (
            blob.blob_id,
            human_size(blob.ready_bytes),
            human_size(blob.size_bytes),
            share(blob.ready_bytes, blob.size_bytes),
            f"{blob.ready_chunks}/{blob.chunks}",
        )
        for blob in blobs
    ]
    print_table(rows, frozenset(), 0)
    for file in files:
        print_line(f"{share(file.ready_bytes, file.size_bytes):>5}  {shown_name(file.path)}")
    return 0


def _print_objects(blobs: list[BlobCoverage], files: list[FileCoverage]) -> None:
    for blob in blobs:
        print_json(
            {
                "blob": blob.blob_id,
                "ready_bytes": blob.ready_bytes,
                "size": blob.size_bytes,
                "ready_chunks": blob.ready_chunks,
                "chunks": blob.chunks,
            }
        )
    for file in files:
        print_json(
            {
                "path": os.fsdecode(file.path),
                "ready_bytes": file.ready_bytes,
                "size": file.size_bytes,
            }
        )
