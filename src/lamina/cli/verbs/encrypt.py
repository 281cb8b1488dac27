"""``lamina encrypt``."""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING, Final

from lamina.cli import console
from lamina.cli.broker_options import add_broker_options, brokers
from lamina.cli.help_text import HelpPage
from lamina.cli.key_options import (
    PROVIDER_ENVIRONMENT,
    add_decryption_key_option,
    add_encryption_key_option,
    protect_process,
)
from lamina.cli.options import REGISTRY_ENVIRONMENT, add_output_options, add_pair_options
from lamina.cli.output import print_json, print_line
from lamina.cli.parser import Parser
from lamina.cli.progress import open_meter, phase_bars

if TYPE_CHECKING:
    from lamina.trust.encryption.image_encryption import Changed

HELP: Final = HelpPage(
    """
    Copies an ordinary OCI image with its layers encrypted for some keys (ocicrypt), readable by
    skopeo, containerd and confidential containers as well. Configuration, names and sizes stay in
    clear. Of a multi-platform image one platform is taken.

    Encryption hides; it does not prove who made the image: whoever has a public key can encrypt
    another image to it. Sign the image after encryption.

    Layers that are encrypted already stay as they are, or with --decryption-key get the new keys
    added beside the old ones.
    """,
    examples=(
        (
            "lamina encrypt --encryption-key jwe:team.pub app:1 localhost:5000/app:sealed",
            "Encrypt all layers for the holder of a private key.",
        ),
        (
            "lamina encrypt --encryption-key jwe:new.pub --decryption-key old.pem oci:a oci:b",
            "Let one more key decrypt.",
        ),
    ),
    json_keys=(
        ("digest", "digest of the new manifest"),
        ("reference", "where it was written"),
        ("layers", "numbers, from 0, of the layers that were encrypted or got keys added"),
    ),
    environment=(*REGISTRY_ENVIRONMENT, PROVIDER_ENVIRONMENT),
    see_also=("decrypt", "copy", "kbs"),
)


def add_arguments(parser: Parser) -> None:
    """Declare the options and arguments."""
    parser.add_argument("source", metavar="SRC", help="reference of an image")
    parser.add_argument("destination", metavar="DST", help="where the encrypted image goes")
    add_encryption_key_option(parser)
    parser.add_argument(
        "--encrypt-layer",
        metavar="N",
        type=int,
        action="append",
        help="encrypt only this layer, from 0, negative numbers from the end; may be repeated",
    )
    add_decryption_key_option(parser)
    add_broker_options(parser)
    add_pair_options(parser, many_platforms=False)
    add_output_options(parser)


def run(args: Namespace) -> int:
    """Encrypt, and tell the digest."""
    from lamina.cli.opening import open_pair
    from lamina.trust.encryption.image_encryption import encrypt_image
    from lamina.trust.encryption.recipients import parse_decryption_keys, parse_recipients

    protect_process()
    known = brokers(args)
    recipients = parse_recipients(args.encryption_key, known)
    keys = parse_decryption_keys(args.decryption_key, known) if args.decryption_key else None
    with open_pair(args) as (origin, target), open_meter() as meter:
        changed = encrypt_image(
            origin,
            target,
            recipients,
            layers=args.encrypt_layer,
            keys=keys,
            platform=args.platform,
            progress=phase_bars(meter),
        )
    tell_changed(args, changed, "encrypted")
    return 0


def tell_changed(args: Namespace, changed: Changed, what: str) -> None:
    """Tell the digest, and how many layers were encrypted or decrypted."""
    digest, layers = changed.descriptor.digest, list(changed.layers)
    if args.json:
        print_json({"digest": digest, "reference": args.destination, "layers": layers})
        return
    print_line(digest)
    console.info(f"{len(layers)} layers {what}")
