"""``lamina sign``."""

from __future__ import annotations

import argparse
from argparse import Namespace
from typing import Any, Final

from lamina.cli import console
from lamina.cli.help_text import HelpPage
from lamina.cli.key_options import PASSWORD_ENVIRONMENT, load_signing_key, protect_process
from lamina.cli.options import (
    REGISTRY_ENVIRONMENT,
    add_output_options,
    add_signing_registry_options,
    client_options,
)
from lamina.cli.output import print_json, print_line
from lamina.cli.parser import Parser
from lamina.errors import UsageError

HELP: Final = HelpPage(
    """
    Signs an image with a private key and puts the signature beside it in two forms: under the tag
    sha256-HEX.sig, where cosign 2, skopeo and podman look for it, and as a Sigstore bundle that
    refers to the image, where cosign 3 looks. What is signed is the digest of
    the manifest, or of the index of a multi-platform image, and the exact name with its tag.

    Sign after everything else: after conversion, encryption and pushing.
    """,
    examples=(
        ("lamina sign --key team.key localhost:5000/app:1", "Sign what the tag points to."),
        (
            "lamina sign --key team.key --release 7 localhost:5000/app:1",
            "State a release number, of which a verifier can demand a minimum.",
        ),
        (
            "lamina sign --key team.key --root-hash 5f0c... localhost:5000/app:1",
            "State the root hash of the image as a disk.",
        ),
        (
            "lamina sign --key team.key --identity registry.example/app:1 oci:app:1",
            "Sign in an OCI layout folder what will be pushed.",
        ),
    ),
    json_keys=(
        ("digest", "digest of the manifest or index that was signed"),
        ("identity", "the name in the signature"),
        ("optional", "what else the signature states"),
    ),
    environment=(*REGISTRY_ENVIRONMENT, PASSWORD_ENVIRONMENT),
    see_also=("verify", "key"),
)


def add_arguments(parser: Parser) -> None:
    """Declare the options and arguments."""
    parser.add_argument("image", metavar="IMAGE", help="reference of an image, with its tag")
    parser.add_argument(
        "--key", metavar="FILE", required=True, help="private key, of cosign or PKCS#8 in PEM"
    )
    parser.add_argument(
        "--identity",
        metavar="HOST/NAME:TAG",
        help="the name to sign, if it is not IMAGE (needed for local images)",
    )
    parser.add_argument(
        "--form",
        choices=("both", "tag", "bundle"),
        default="both",
        metavar="both|tag|bundle",
        help="in which form: both, only the tag, or only the bundle",
    )
    parser.add_argument(
        "--release", metavar="N", type=int, help="release number to state in the signature"
    )
    parser.add_argument(
        "--root-hash",
        metavar="HEX",
        help="root hash of the image as a disk, of `lamina export --verity`, to state",
    )
    parser.add_argument("--suite", metavar="TEXT", help="suite to state in the signature")
    parser.add_argument(
        "-a",
        "--annotation",
        metavar="KEY=VALUE",
        type=annotation,
        action="append",
        default=[],
        help="state something else; may be repeated",
    )
    add_signing_registry_options(parser)
    add_output_options(parser)


def annotation(text: str) -> tuple[str, str]:
    """``KEY=VALUE`` → both."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return key, value


def run(args: Namespace) -> int:
    """Sign, and tell the digest."""
    from lamina.oci.reference import parse_reference
    from lamina.oci.verity_manifest import ROOT_HASH, VERITY_ROOT
    from lamina.registry.open_repository import open_for_attaching
    from lamina.trust.signatures.image_signature import FORMS, SUITE, sign_image
    from lamina.trust.signatures.simple_signing import RELEASE

    protect_process()
    key = load_signing_key(args.key)
    optional: dict[str, Any] = dict(args.annotation)
    if args.release is not None:
        optional[RELEASE] = args.release
    if args.root_hash is not None:
        if not ROOT_HASH.fullmatch(args.root_hash):
            raise UsageError("--root-hash is the 64 or 128 digits that `lamina export` printed")
        optional[VERITY_ROOT] = args.root_hash
    if args.suite is not None:
        optional[SUITE] = args.suite
    forms = FORMS if args.form == "both" else (args.form,)
    reference = parse_reference(args.image)
    with open_for_attaching(reference, options=client_options(args)) as repository:
        descriptor, payload = sign_image(
            repository, key, identity=args.identity, optional=optional, forms=forms
        )
    if args.json:
        print_json(
            {
                "digest": descriptor.digest,
                "identity": payload.reference,
                "optional": payload.optional,
            }
        )
        return 0
    print_line(descriptor.digest)
    console.info(f"signed as {payload.reference}")
    return 0
