"""``lamina key``."""

from __future__ import annotations

import os
from argparse import Namespace
from typing import Final

from lamina.cli import console
from lamina.cli.help_text import HelpPage
from lamina.cli.key_options import (
    PASSWORD_ENVIRONMENT,
    key_passphrase,
    load_signing_key,
    protect_process,
    write_new,
)
from lamina.cli.options import add_output_options
from lamina.cli.output import print_json, print_line
from lamina.cli.parser import Parser
from lamina.errors import UsageError

HELP: Final = HelpPage(
    """
    With generate, makes a key pair for signing (ECDSA on P-256): PREFIX.key, encrypted with a
    passphrase in cosign's form and readable by its owner only, and PREFIX.pub. cosign, skopeo and
    podman take both. Files that are there already are not replaced.

    With public, prints the public key of a private key.
    """,
    examples=(
        ("lamina key generate team", "Make team.key and team.pub."),
        ("lamina key public team.key > team.pub", "Print the public key."),
    ),
    json_keys=(
        ("private_key, public_key", "paths of the files that were written (generate)"),
        ("pem", "the public key"),
    ),
    environment=(PASSWORD_ENVIRONMENT,),
    see_also=("sign", "verify"),
)


def add_arguments(parser: Parser) -> None:
    """Declare the options and arguments."""
    parser.add_argument("action", choices=("generate", "public"), help="what to do")
    parser.add_argument(
        "name", metavar="NAME", help="generate: prefix of the files; public: file of a private key"
    )
    add_output_options(parser)


def run(args: Namespace) -> int:
    """Make or show keys."""
    protect_process()
    if args.action == "public":
        pem = load_signing_key(args.name).public().pem().decode("ascii")
        if args.json:
            print_json({"pem": pem})
        else:
            print_line(pem.rstrip("\n"))
        return 0
    from lamina.trust.crypto.cosign_key import generate, write_key

    private, public = f"{args.name}.key", f"{args.name}.pub"
    for path in (private, public):
        if os.path.lexists(path):
            raise UsageError(f"{path} is there already", hint="choose another name, or move it")
    key = generate()
    passphrase = key_passphrase("Passphrase of the new key", twice=True)
    write_new(private, write_key(key, passphrase), 0o600)
    pem = key.public().pem().decode("ascii")
    write_new(public, pem.encode("ascii"), 0o644)
    if args.json:
        print_json({"private_key": private, "public_key": public, "pem": pem})
    else:
        console.info(f"wrote {private} and {public}")
    return 0
