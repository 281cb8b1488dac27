"""``lamina verify``."""

from __future__ import annotations

from argparse import Namespace
from typing import Final

from lamina.cli import story
from lamina.cli.options import (
    REGISTRY_ENVIRONMENT,
    add_output_options,
    add_signing_registry_options,
    client_options,
)
from lamina.cli.output import print_json, print_line
from lamina.cli.page import Page
from lamina.cli.parser import Parser
from lamina.cli.verbs.sign import annotation
from lamina.errors import UsageError

PAGE: Final = Page(
    """
    Proves that an image is signed as it must be: with --key by one of some public keys and for
    exactly the name that was asked for, or with --policy as a policy.json of the containers tools
    says. Nothing but the signatures and the manifest is fetched.

    A signature over another digest, for another name or tag, or by another key does not count;
    neither does one that lacks what --min-release, --suite or --annotation demand.
    """,
    examples=(
        ("lamina verify --key team.pub localhost:5000/app:1", "Verify with a public key."),
        (
            "lamina verify --key team.pub --min-release 7 localhost:5000/app:1",
            "Refuse images that are older than release 7, though they are signed.",
        ),
        ("lamina verify --policy policy.json docker://quay.io/app", "Verify by a policy file."),
        (
            "lamina verify --key cosign.pub --match-repository quay.io/app:1",
            "Accept signatures that name no tag, as cosign makes them.",
        ),
    ),
    json_keys=(
        ("digest", "digest of the manifest or index that was proven"),
        ("signatures", "identity and optional part of the signatures that proved it"),
    ),
    environment=REGISTRY_ENVIRONMENT,
    see_also=("sign", "policy"),
)


def add_arguments(parser: Parser) -> None:
    """Declare the options and arguments."""
    parser.add_argument("image", metavar="IMAGE", help="reference of an image")
    parser.add_argument(
        "--key",
        metavar="FILE",
        action="append",
        default=[],
        help="public key in PEM; may be repeated, a signature by any of them suffices",
    )
    parser.add_argument("--policy", metavar="FILE", help="policy.json, instead of --key")
    parser.add_argument(
        "--identity",
        metavar="HOST/NAME:TAG",
        help="the name that must be signed, if it is not IMAGE (needed for local images)",
    )
    parser.add_argument(
        "--match-repository",
        action="store_true",
        help="accept a signature for any tag, or none, of the repository",
    )
    parser.add_argument(
        "--any-name",
        action="store_true",
        help="accept a signature that states another name or none, as bundles of cosign do; the "
        "digest is proven all the same",
    )
    _add_demands(parser)
    add_signing_registry_options(parser)
    add_output_options(parser)


def _add_demands(parser: Parser) -> None:
    """What a signature must state beside the name."""
    parser.add_argument(
        "--min-release",
        metavar="N",
        type=int,
        default=0,
        help="lowest release number that a signature must state",
    )
    parser.add_argument("--suite", metavar="TEXT", default="", help="suite that it must state")
    parser.add_argument(
        "-a",
        "--annotation",
        metavar="KEY=VALUE",
        type=annotation,
        action="append",
        default=[],
        help="something else that it must state; may be repeated",
    )


def run(args: Namespace) -> int:
    """Verify, and tell the digest that was proven."""
    from lamina.registry.reference import parse_reference
    from lamina.registry.repository import open_repository
    from lamina.trust.identity import ANY_NAME, IdentityRule
    from lamina.trust.image_signature import Demand, verify_image
    from lamina.trust.keys import load_public_key, read_key_file
    from lamina.trust.policy import load_policy

    if bool(args.key) == bool(args.policy):
        raise UsageError("give either --key or --policy", hint="lamina verify --key FILE IMAGE")
    demands = (args.min_release, args.suite, args.annotation, args.match_repository, args.any_name)
    if args.policy and any(demands):
        raise UsageError("a policy file says itself what it demands")
    reference = parse_reference(args.image)
    wanted = parse_reference(f"docker://{args.identity}") if args.identity else reference
    with open_repository(reference, options=client_options(args)) as repository:
        if args.policy:
            verified = load_policy(args.policy).check(repository, wanted)
        else:
            keys = tuple(
                load_public_key(read_key_file(path, private=False), path) for path in args.key
            )
            kind = ANY_NAME if args.any_name else "matchRepository"
            loose = args.any_name or args.match_repository
            rule = IdentityRule(kind) if loose else IdentityRule()
            demand = Demand(keys, rule, args.min_release, args.suite, dict(args.annotation))
            verified = verify_image(repository, [demand], wanted)
    if args.json:
        found = [{"identity": p.reference, "optional": p.optional} for p in verified.payloads]
        print_json({"digest": verified.descriptor.digest, "signatures": found})
        return 0
    print_line(verified.descriptor.digest)
    if verified.payloads:
        story.tell(f"signed as {verified.payloads[0].reference}")
    else:
        story.warn("the policy accepts this image without a signature")
    return 0
