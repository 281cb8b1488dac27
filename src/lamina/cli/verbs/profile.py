"""``lamina profile``."""

from __future__ import annotations

import argparse
from argparse import Namespace
from typing import TYPE_CHECKING, Any, Final

from lamina.cli import console
from lamina.cli.container_options import add_container_options
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
from lamina.cli.profile_files import read_profile, write_profile
from lamina.errors import NotFoundError, UsageError

if TYPE_CHECKING:
    from lamina.build.start_attach import Attachment
    from lamina.build.start_profile import Profile
    from lamina.cli.recording import Until

SHOW: Final = "show"

HELP: Final = HelpPage(
    """
    Records which pages of which files a start reads, and attaches them to the image as a start
    artifact: `lamina run` and `mount` then fetch them in one request, and the program finds them
    there. The image stays as it is. The command is that of the image unless one is given; it is
    run as `lamina run` would, several times, and what the runs read is merged. Without COMMAND and
    with --files, whole files are taken instead, and nothing is run.

    An artifact cannot change a byte that a program sees: each page is proven by the digests that
    the image itself has. A wrong one costs bytes, and the start is then as without. An image may
    have several, for several commands.

    A profile is text: --output writes it, --from attaches one that was edited or kept beside the
    source of an image, and `lamina profile show IMAGE [NAME]` prints what is attached.

    With --mount the image is mounted on a folder instead, and what others read there is recorded,
    until a time or a process is over, the folder is unmounted, or lamina is told to stop.

    Recording needs root, runc or crun, and Linux 6.12. The chunk digests of the image must be
    BLAKE3, as `lamina convert` and `lamina index` make them. The artifact of a sealed image is
    sealed for whoever can open the image.
    """,
    examples=(
        ("lamina profile localhost:5000/node node -v", "Record a start, and attach it."),
        ("lamina run --rm localhost:5000/node node -v", "Then start in one request."),
        (
            "lamina profile --until 5 --as web localhost:5000/nginx",
            "A server, which is told to end after 5 seconds.",
        ),
        (
            "lamina profile --mount /mnt --until pid:4321 --as ci localhost:5000/node",
            "Record what a process and others read of it in /mnt.",
        ),
        ("lamina profile show localhost:5000/node", "Print what is attached."),
    ),
    json_keys=(
        ("name", "what --profile calls it"),
        ("digest", "digest of the manifest that was attached"),
        ("image_digest", "what it is attached to"),
        ("files", "how many files have pages in it"),
        ("pages", "how many pages of 4 KiB"),
        ("page_bytes", "their size"),
        ("artifact_bytes", "size of the artifact, compressed"),
        ("share", "of the content of the image, 0 to 1"),
    ),
    environment=(STORE_ENVIRONMENT, *REGISTRY_ENVIRONMENT),
    see_also=("run", "mount", "prefetch"),
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
    group = parser.add_argument_group("Profile options")
    add = group.add_argument
    add("--as", dest="profile_name", metavar="NAME",
        help="what to call it (the name of the program)")  # fmt: skip
    add("--runs", metavar="N", type=int, default=2, help="how often to run it (%(default)s)")
    add("--until", metavar="SECONDS|pid:PID", type=until,
        help="tell a command that goes on for longer to end (SIGTERM); with --mount, end then, or "
        "when that process ends")  # fmt: skip
    add("--mount", metavar="DIR",
        help="mount the image on this folder and record what others read there, once")  # fmt: skip
    add("--files", metavar="PATH", action="append", default=[],
        help="take this file, or all below a folder, and run nothing; may be repeated")  # fmt: skip
    add("--from", dest="from_file", metavar="FILE", help="attach this profile, and run nothing")
    add("--output", metavar="FILE", help="write the profile to a file")
    add("--no-attach", dest="attach", action="store_false", help="attach nothing")
    add_container_options(parser)
    add_registry_options(parser)
    add_output_options(parser, short_verbose=False, short_help=False)


def until(text: str) -> Until:
    """Read ``--until``.  Raises argparse.ArgumentTypeError."""
    from lamina.cli.recording import parse_until

    try:
        return parse_until(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither a number of seconds nor pid:PID"
        ) from None


def run(args: Namespace) -> int:
    """Record, write, attach, tell."""
    if args.image == SHOW and args.command:
        return _show(args, *_show_words(args.command))
    if args.runs < 1:
        raise UsageError("--runs is at least 1")
    profile = _profile(args)
    if args.output:
        write_profile(args.output, profile)
    if args.attach:
        _tell(args, _attach(args, profile))
    return 0


def _profile(args: Namespace) -> Profile:
    if args.from_file:
        return read_profile(args.from_file)
    if args.files:
        from lamina.build.start_record import profile_of_files
        from lamina.cli.opening import open_native

        with open_native(args, args.image) as image:
            return profile_of_files(image, args.files, args.command)
    from lamina.build.start_profile import merged
    from lamina.cli.recording import record, record_mount

    if args.mount:
        return record_mount(args)
    return merged([record(args) for _ in range(args.runs)])


def _attach(args: Namespace, profile: Profile) -> tuple[str, Attachment]:
    from lamina.build.start_attach import attach_start, default_name
    from lamina.cli.opening import open_native
    from lamina.oci.reference import parse_reference
    from lamina.registry.open_repository import open_repository

    name = args.profile_name or default_name(profile.command)
    where = parse_reference(args.image)
    with (
        open_native(args, args.image) as image,
        open_repository(where, write=True, options=client_options(args)) as repository,
    ):
        return name, attach_start(repository, image, profile, name)


def _tell(args: Namespace, attached: tuple[str, Attachment]) -> None:
    name, attachment = attached
    report = attachment.report
    if args.json:
        print_json(report_object(name, attachment))
        return
    console.info(
        f"{name}: {report.pages} pages of {report.files} files, "
        f"{human_size(report.page_bytes)} ({100 * report.share:.1f} % of the image), "
        f"attached as {human_size(report.artifact_bytes)}"
    )
    print_line(attachment.digest)


def report_object(name: str, attachment: Attachment) -> dict[str, Any]:
    """Return the report as JSON; keys as documented."""
    report = attachment.report
    return {
        "name": name,
        "digest": attachment.digest,
        "image_digest": attachment.image_digest,
        "files": report.files,
        "pages": report.pages,
        "page_bytes": report.page_bytes,
        "artifact_bytes": report.artifact_bytes,
        "share": round(report.share, 6),
    }


def _show_words(words: list[str]) -> tuple[str, str | None]:
    if len(words) > 2:
        raise UsageError("show takes IMAGE and perhaps NAME")
    return words[0], words[1] if len(words) == 2 else None


def _show(args: Namespace, reference: str, name: str | None) -> int:
    """Print the profile of what is attached, as text that --from takes."""
    from lamina.build.start_profile import encode_profile
    from lamina.build.start_show import attached_profiles
    from lamina.cli.opening import open_native

    with open_native(args, reference) as image:
        found = [
            each
            for each in attached_profiles(image, reference, client_options(args))
            if name in (None, each.name)
        ]
    if not found:
        raise NotFoundError(f"{reference} has no start artifact{f' {name!r}' if name else ''}")
    for each in found:
        if args.json:
            print_json(each.summary())
            continue
        print_line(f"# {each.name}: {each.pages} pages, {human_size(each.artifact_bytes)}")
        if name is not None or len(found) == 1:
            print_line(encode_profile(each.profile).rstrip("\n"))
    return 0
