"""The options that name keys, the same for every verb that has them."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import argparse

    from lamina.cli.parser import Parser
    from lamina.trust.crypto.keys import PrivateKey
    from lamina.trust.crypto.secret import Secret

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


def forget_passphrases() -> None:
    """For a verb that starts other programs: they do not inherit passphrases that the user has in
    the environment.
    """
    from lamina.trust.crypto.secret import PASSWORD_VARIABLES, take_from_environment

    for name in PASSWORD_VARIABLES:
        passphrase = take_from_environment(name)
        if passphrase is not None:
            passphrase.close()


def protect_process() -> None:
    """From now on this process has keys: no core dumps, no look into it by others."""
    if sys.platform == "linux":
        from lamina.linux.memory import forbid_core_dumps

        forbid_core_dumps()


PASSWORD_ENVIRONMENT: Final = (
    "COSIGN_PASSWORD",
    "passphrase of the private key; without it, it is asked for on a terminal",
)


def key_passphrase(question: str, *, twice: bool = False) -> Secret:
    """Return the passphrase of a signing key: ``COSIGN_PASSWORD``, else asked for on the terminal,
    else the first line of standard input.
    """
    import sys

    from lamina.cli import console
    from lamina.trust.crypto.cosign_key import PASSWORD_VARIABLE
    from lamina.trust.crypto.secret import Secret, take_from_environment

    found = take_from_environment(PASSWORD_VARIABLE)
    if found is not None:
        return found
    if not sys.stdin.isatty():
        line = sys.stdin.readline()
        if twice and not line:
            console.warning("there is no passphrase on standard input, so the new key has none")
        return Secret(line.rstrip("\r\n").encode())
    return ask_passphrase(question, twice=twice)


def ask_passphrase(question: str, *, twice: bool) -> Secret:
    """Return a passphrase that is typed on the terminal.  Raises UsageError if two differ."""
    import getpass

    from lamina.errors import UsageError
    from lamina.trust.crypto.secret import Secret

    answer = getpass.getpass(f"{question}: ")
    if twice and getpass.getpass("The same again: ") != answer:
        raise UsageError("the two passphrases differ")
    return Secret(answer.encode())


def load_signing_key(path: str) -> PrivateKey:
    """Return a private key of cosign's form, or PKCS#8 in PEM."""
    from lamina.trust.crypto.cosign_key import is_cosign_key, read_key
    from lamina.trust.crypto.keys import load_private_key, read_key_file

    data = read_key_file(path, private=True)
    if is_cosign_key(data):
        return read_key(data, path, key_passphrase(f"Passphrase of {path}"))
    encrypted = b"ENCRYPTED" in data
    passphrase = key_passphrase(f"Passphrase of {path}") if encrypted else None
    return load_private_key(data, path, passphrase)


def write_new(path: str, data: bytes, mode: int) -> None:
    """Write a file that must not be there yet.  Raises UsageError."""
    import os

    from lamina.errors import UsageError

    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with open(fd, "wb") as file:
            file.write(data)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from None
