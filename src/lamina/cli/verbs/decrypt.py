"""``lamina decrypt``."""

from __future__ import annotations

from argparse import Namespace
from typing import Final

from lamina.cli.broker_options import add_broker_options, brokers
from lamina.cli.help_text import HelpPage
from lamina.cli.key_options import (
    PROVIDER_ENVIRONMENT,
    add_decryption_key_option,
    protect_process,
)
from lamina.cli.options import REGISTRY_ENVIRONMENT, add_output_options, add_pair_options
from lamina.cli.parser import Parser
from lamina.cli.progress import open_meter, phase_bars
from lamina.cli.verbs.encrypt import tell_changed

HELP: Final = HelpPage(
    """
    Copies an OCI image with its encrypted layers decrypted (ocicrypt). Of a multi-platform image
    one platform is taken.

    Every layer is proven before any of it is written: digest and HMAC of the ciphertext, then the
    plaintext against the digests that the image's configuration names. A changed nonce, a layer
    replaced by another one for the same key, or a wrong digest beside the key ends the command;
    nothing is left under DST.
    """,
    examples=(
        (
            "lamina decrypt --decryption-key team.pem localhost:5000/app:sealed oci:app",
            "Decrypt into an OCI layout folder.",
        ),
        (
            "lamina decrypt --decryption-key key.pem:file=pass.txt oci:sealed oci:plain",
            "With a private key that is encrypted itself.",
        ),
    ),
    json_keys=(
        ("digest", "digest of the new manifest"),
        ("reference", "where it was written"),
        ("layers", "numbers, from 0, of the layers that were decrypted"),
    ),
    environment=(*REGISTRY_ENVIRONMENT, PROVIDER_ENVIRONMENT),
    see_also=("encrypt", "kbs"),
)


def add_arguments(parser: Parser) -> None:
    """Declare the options and arguments."""
    parser.add_argument("source", metavar="SRC", help="reference of an encrypted image")
    parser.add_argument("destination", metavar="DST", help="where the decrypted image goes")
    add_decryption_key_option(parser)
    add_broker_options(parser)
    add_pair_options(parser, many_platforms=False)
    add_output_options(parser)


def run(args: Namespace) -> int:
    """Decrypt, and tell the digest."""
    from lamina.cli.opening import open_pair
    from lamina.trust.encryption.image_encryption import decrypt_image
    from lamina.trust.encryption.recipients import parse_decryption_keys

    protect_process()
    keys = parse_decryption_keys(args.decryption_key, brokers(args))
    with open_pair(args) as (origin, target), open_meter() as meter:
        changed = decrypt_image(
            origin, target, keys, platform=args.platform, progress=phase_bars(meter)
        )
    tell_changed(args, changed, "decrypted")
    return 0
