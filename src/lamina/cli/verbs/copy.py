"""``lamina copy``."""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING, Final

from lamina.cli import console
from lamina.cli.help_text import HelpPage
from lamina.cli.options import REGISTRY_ENVIRONMENT, add_output_options, add_pair_options
from lamina.cli.output import human_size, print_json, print_line
from lamina.cli.parser import Parser
from lamina.cli.progress import open_meter
from lamina.errors import FetchError, UsageError

if TYPE_CHECKING:
    from lamina.registry.attached import Attached
    from lamina.registry.copy import CopyPlan
    from lamina.registry.repository import Repository

HELP: Final = HelpPage(
    """
    Copies an image as it is, whatever its kind, between registries, OCI layout folders and
    archives. Manifests keep their bytes, so digests do not change; blobs that are there already
    are not sent again, and within one registry they are taken over without moving.

    Of a multi-platform image one platform is copied, or with --all the index and everything in
    it. Every blob is verified on its way. What is attached to the image, signatures for instance
    and the index that opens it lazily, is left behind, which is told, or comes along with
    --referrers.
    """,
    examples=(
        ("lamina copy oci:native:debian localhost:5000/debian", "Push what was converted."),
        ("lamina copy --all localhost:5000/app:1 registry.example/app:1", "Mirror an image."),
        ("lamina copy localhost:5000/app oci-archive:app.tar", "Save an image in a file."),
        ("lamina copy --referrers localhost:5000/app registry.example/app", "With signatures."),
    ),
    json_keys=(
        ("digest", "digest of the manifest or index that was copied"),
        ("media_type", "its media type"),
        ("reference", "where it was written"),
        ("manifests", "number of manifests and indexes"),
        ("blobs, bytes", "number and size of their blobs, those that were there already included"),
        ("attached, left_behind", "lists of kind, digest and subject: what came along, what not"),
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
    parser.add_argument(
        "--referrers",
        action="store_true",
        help="copy what is attached to the image too: signatures, indexes, attestations",
    )
    add_pair_options(parser, many_platforms=False)
    add_output_options(parser)


def run(args: Namespace) -> int:
    """Copy, and tell the digest."""
    from lamina.cli.opening import open_pair
    from lamina.oci.platform import host_platform
    from lamina.registry.copy import plan_copy, run_copy

    if args.all and args.platform:
        raise UsageError("--all copies all platforms, --platform one", hint="leave one of them out")
    if args.referrers and args.destination.startswith("docker-archive:"):
        raise UsageError(
            "a docker archive has no place for what is attached to an image",
            hint="write an oci-archive: instead",
        )
    with open_pair(args) as (origin, target), open_meter() as meter:
        only = None if args.all else args.platform or str(host_platform())
        # An image that is for one platform must be for the one that was asked for.
        wanted = [args.platform] if args.platform else None
        plan = plan_copy(origin, only=only, platforms=wanted, referrers=args.referrers)
        advance = meter.add("copy", plan.size_bytes)
        root = run_copy(plan, origin, target, progress=lambda _, moved: advance(moved))
        left = _left_behind(origin, plan)
    if args.json:
        print_json(
            {
                "digest": root.digest,
                "media_type": root.media_type,
                "reference": args.destination,
                "manifests": len(plan.manifests),
                "blobs": len(plan.blobs),
                "bytes": plan.size_bytes,
                "attached": [_facts(one) for one, _ in plan.attached],
                "left_behind": list(map(_facts, left)),
            }
        )
        return 0
    print_line(root.digest)
    console.info(f"{len(plan.blobs)} blobs, {human_size(plan.size_bytes)}")
    _tell_attached(plan, left)
    return 0


def _left_behind(origin: Repository, plan: CopyPlan) -> list[Attached]:
    """Return what is attached to what was copied, and to the index that it was chosen from."""
    from lamina.registry.attached import list_attached

    digests = [plan.top.digest, *(part.digest for part, _ in plan.manifests)]
    taken = {one.descriptor.digest for one, _ in plan.attached}
    try:
        found = list_attached(origin, digests)
    except FetchError as error:
        console.warning(f"it is not known what is attached to the image: {error}")
        return []
    return [one for one in found if one.descriptor.digest not in taken]


def _tell_attached(plan: CopyPlan, left: list[Attached]) -> None:
    from lamina.registry.attached import shown_kinds

    if plan.attached:
        console.info(f"with {shown_kinds(one for one, _ in plan.attached)}")
    is_part = plan.top.digest not in {part.digest for part, _ in plan.manifests}
    of_index = [one for one in left if is_part and one.subject == plan.top.digest]
    others = [one for one in left if one not in of_index]
    if others:
        console.info(f"left behind: {shown_kinds(others)} (--referrers takes them along)")
    if of_index:
        console.info(
            f"left behind: {shown_kinds(of_index)} of the index {plan.top.digest}, of which one "
            "platform was copied (--all --referrers takes them along)"
        )


def _facts(attached: Attached) -> dict[str, str]:
    return {
        "kind": attached.kind,
        "digest": attached.descriptor.digest,
        "subject": attached.subject,
    }
