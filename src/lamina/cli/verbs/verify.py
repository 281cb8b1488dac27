"""``lamina verify``."""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING, Final

from lamina.cli import console
from lamina.cli.help_text import HelpPage
from lamina.cli.options import (
    REGISTRY_ENVIRONMENT,
    add_output_options,
    add_signing_registry_options,
    client_options,
)
from lamina.cli.output import print_json, print_line
from lamina.cli.parser import Parser
from lamina.cli.verbs.sign import annotation
from lamina.errors import UsageError

if TYPE_CHECKING:
    from lamina.trust.signatures.image_signature import Demand
    from lamina.trust.signatures.keyless import KeylessSigner

HELP: Final = HelpPage(
    """
    Proves that an image is signed as it must be: with --key by one of some public keys and for
    exactly the name that was asked for, with --policy as a policy.json of the containers tools
    says, or with --certificate-identity by a short-lived certificate for an identity (keyless,
    which needs the extra "keyless"). Nothing but the signatures and the manifest is fetched.

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
    _add_keyless(parser)
    _add_demands(parser)
    add_signing_registry_options(parser)
    add_output_options(parser)


def _add_keyless(parser: Parser) -> None:
    """Signatures by an identity instead of a key."""
    group = parser.add_argument_group("Keyless signatures")
    group.add_argument(
        "--certificate-identity",
        metavar="TEXT",
        help="who must have signed, instead of --key: an e-mail address or URI",
    )
    group.add_argument(
        "--certificate-oidc-issuer", metavar="URL", help="who vouched for the identity"
    )
    group.add_argument(
        "--trusted-root",
        metavar="FILE",
        help="trusted_root.json of the Sigstore instance; nothing is asked over the network",
    )


def _signer(args: Namespace) -> KeylessSigner | None:
    fields = (args.certificate_identity, args.certificate_oidc_issuer, args.trusted_root)
    if not any(fields):
        return None
    if not all(fields):
        raise UsageError(
            "a keyless signature needs --certificate-identity, --certificate-oidc-issuer and "
            "--trusted-root"
        )
    from lamina.trust.signatures.keyless import KeylessSigner

    return KeylessSigner(*fields)


def _add_demands(parser: Parser) -> None:
    """Add the options for what a signature must state beside the name."""
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


def _demand(args: Namespace, signer: KeylessSigner | None) -> Demand:
    """Return what one signature must fulfil, without a policy file."""
    from lamina.trust.crypto.keys import load_public_key, read_key_file
    from lamina.trust.signatures.identity import ANY_NAME, IdentityRule
    from lamina.trust.signatures.image_signature import Demand

    keys = tuple(load_public_key(read_key_file(path, private=False), path) for path in args.key)
    kind = ANY_NAME if args.any_name else "matchRepository"
    rule = IdentityRule(kind) if args.any_name or args.match_repository else IdentityRule()
    return Demand(keys, rule, args.min_release, args.suite, dict(args.annotation), signer)


def run(args: Namespace) -> int:
    """Verify, and tell the digest that was proven."""
    from lamina.oci.reference import parse_reference
    from lamina.registry.open_repository import open_repository
    from lamina.trust.signatures.image_signature import verify_image
    from lamina.trust.signatures.policy import load_policy

    signer = _signer(args)
    if bool(args.key) + bool(args.policy) + bool(signer) != 1:
        raise UsageError(
            "give one of --key, --policy and --certificate-identity",
            hint="lamina verify --key FILE IMAGE",
        )
    demands = (args.min_release, args.suite, args.annotation, args.match_repository, args.any_name)
    if args.policy and any(demands):
        raise UsageError("a policy file says itself what it demands")
    reference = parse_reference(args.image)
    wanted = parse_reference(f"docker://{args.identity}") if args.identity else reference
    with open_repository(reference, options=client_options(args)) as repository:
        if args.policy:
            verified = load_policy(args.policy).check(repository, wanted)
        else:
            verified = verify_image(repository, [_demand(args, signer)], wanted)
    if args.json:
        found = [{"identity": p.reference, "optional": p.optional} for p in verified.payloads]
        print_json({"digest": verified.descriptor.digest, "signatures": found})
        return 0
    print_line(verified.descriptor.digest)
    if verified.payloads:
        console.info(f"signed as {verified.payloads[0].reference}")
    else:
        console.warning("the policy accepts this image without a signature")
    return 0
