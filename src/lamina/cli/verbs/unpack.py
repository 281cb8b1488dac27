"""``lamina unpack``."""

from __future__ import annotations

from argparse import Namespace
from contextlib import closing
from typing import TYPE_CHECKING, Final

from lamina.cli import console
from lamina.cli.help_text import HelpPage
from lamina.cli.options import (
    REGISTRY_ENVIRONMENT,
    STORE_ENVIRONMENT,
    add_output_options,
    add_registry_options,
    client_options,
)
from lamina.cli.output import human_size, print_json, print_line
from lamina.cli.parser import Parser
from lamina.errors import UsageError

if TYPE_CHECKING:
    from lamina.build.layer_tar import UnpackReport
    from lamina.oci.reference import Reference

HELP: Final = HelpPage(
    """
    Turns a native image back into what other tools read: a folder with its tree, or an OCI image
    of one layer. Owners, modes, times, links, devices and extended attributes are kept, as far as
    the user may set them: as root all of them.

    DST is a folder if it starts with `/`, `./` or `../`; it is made, or must be empty. Else it is
    a reference, which names its registry or transport, and the OCI image has the configuration of
    the native one.
    """,
    examples=(
        ("lamina unpack localhost:5000/debian ./rootfs", "A root file system in a folder."),
        ("lamina unpack oci:native:debian oci:images:debian", "An ordinary OCI image again."),
        ("lamina unpack localhost:5000/app oci-archive:app.tar", "The same in one file."),
    ),
    json_keys=(
        ("destination", "as given"),
        ("entries", "files, folders, links and devices that were written"),
        ("bytes", "content of the files"),
        ("notes", "list of what could not be kept, as owners without root"),
        ("digest", "of an OCI image: the digest of its manifest"),
    ),
    environment=(STORE_ENVIRONMENT, *REGISTRY_ENVIRONMENT),
    see_also=("convert", "cat"),
)


def add_arguments(parser: Parser) -> None:
    """Declare the options and arguments."""
    parser.add_argument("image", metavar="IMAGE", help="reference of a native or indexed image")
    parser.add_argument("destination", metavar="DST", help="a folder, or reference of an OCI image")
    add_registry_options(parser)
    add_output_options(parser)


def run(args: Namespace) -> int:
    """Unpack, and tell what was written."""
    from lamina.cli.opening import is_folder, open_native

    digest = None
    destination = None if is_folder(args.destination) else _image_destination(args.destination)
    with closing(open_native(args, args.image)) as image:
        if destination is None:
            from lamina.build.unpack import unpack_to_folder

            report = unpack_to_folder(image, args.destination)
        else:
            from lamina.build.unpack import unpack_to_image

            descriptor, report = unpack_to_image(image, destination, client=client_options(args))
            digest = descriptor.digest
    _tell(args, report, digest)
    return 0


def _image_destination(text: str) -> Reference:
    """Return where an OCI image goes.  UsageError for what more likely is a folder: a name of
    Docker Hub must be written as one.
    """
    from lamina.oci.reference import DEFAULT_REGISTRY, parse_reference

    reference = parse_reference(text)
    explicit = text.startswith(("docker://", DEFAULT_REGISTRY))
    if reference.is_remote and reference.registry == DEFAULT_REGISTRY and not explicit:
        raise UsageError(
            f"{text!r} may be a folder or an image of {DEFAULT_REGISTRY}",
            hint=f"write ./{text} for the folder, docker://{text} for the image",
        )
    return reference


def _tell(args: Namespace, report: UnpackReport, digest: str | None) -> None:
    for note in report.notes:
        console.warning(note)
    if args.json:
        result = {
            "destination": args.destination,
            "entries": report.entries,
            "bytes": report.content_bytes,
            "notes": report.notes,
        }
        print_json(result if digest is None else {**result, "digest": digest})
        return
    if digest is not None:
        print_line(digest)
    console.info(f"{report.entries} entries, {human_size(report.content_bytes)} of content")
