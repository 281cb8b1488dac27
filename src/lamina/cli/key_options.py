"""The options that name keys, the same for every verb that has them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import argparse

    from lamina.cli.parser import Parser

PROVIDER_ENVIRONMENT: Final = (
    "OCICRYPT_KEYPROVIDER_CONFIG",
    "configuration file of ocicrypt's key providers, programs or gRPC services",
)


def add_encryption_key_option(parser: Parser | argparse._ArgumentGroup) -> None:
    """``--encryption-key``."""
    parser.add_argument(
        "--encryption-key",
        metavar="KEY",
        action="append",
        default=[],
        help="who may decrypt: jwe:FILE (public key, RSA or EC), pkcs7:FILE (RSA certificate) or "
        "provider:NAME:PARAMETER; may be repeated, each of them suffices to decrypt",
    )


def add_decryption_key_option(parser: Parser | argparse._ArgumentGroup) -> None:
    """``--decryption-key``."""
    parser.add_argument(
        "--decryption-key",
        metavar="KEY",
        action="append",
        default=[],
        help="FILE (private key; a certificate too for PKCS#7), FILE:file=PATH, FILE:fd=NUMBER or "
        "FILE:pass=TEXT with its passphrase, or provider:NAME; may be repeated",
    )


def protect_process() -> None:
    """From now on this process has keys: no core dumps, no look into it by others."""
    from lamina.linux.memory import forbid_core_dumps

    forbid_core_dumps()
