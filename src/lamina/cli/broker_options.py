"""The options of a key broker: for verbs that ask one, and the passphrase of the one that is run
here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from lamina.cli.parser import Parser
    from lamina.opening.request import KeyBroker
    from lamina.trust.broker.provider import KbsKeyProvider
    from lamina.trust.crypto.secret import Secret
    from lamina.trust.encryption.key_provider import KeyProvider

EVIDENCE: Final = ("sample", "tsm")
STORE_PASSWORD_ENVIRONMENT: Final = (
    "LAMINA_KBS_PASSWORD",
    (
        "passphrase of the broker's key store; without it, and without --passphrase-fd or "
        "--passphrase-file, it is asked for on a terminal. Root and processes of the same user see "
        "the environment that a process was started with"
    ),
)


def add_broker_options(parser: Parser) -> None:
    """``--kbs``, ``--kbs-ca``, ``--kbs-evidence``, ``--kbs-init-data``, ``--kbs-measurement``."""
    group = parser.add_argument_group("Key broker options")
    group.add_argument(
        "--kbs",
        metavar="URL",
        help="key broker that holds the keys of provider:attestation-agent, as https://HOST:PORT",
    )
    group.add_argument(
        "--kbs-ca",
        metavar="FILE",
        help="PEM file of the only authority that the broker is known by",
    )
    group.add_argument(
        "--kbs-evidence",
        choices=EVIDENCE,
        default="sample",
        metavar="sample|tsm",
        help="how this machine attests itself: sample proves nothing and is for development, tsm "
        "is a report of TDX or SEV-SNP by the kernel",
    )
    group.add_argument(
        "--kbs-init-data",
        metavar="FILE",
        help="init-data (TOML 0.1.0) that this machine was started with, which the broker is told; "
        "with tsm the report has to have its digest in it",
    )
    group.add_argument(
        "--kbs-measurement",
        metavar="TEXT",
        default="abcde",
        help="measurement in sample evidence, which `lamina kbs serve` believes (%(default)s)",
    )


def broker_provider(args: argparse.Namespace) -> KbsKeyProvider | None:
    """Return the provider that ``--kbs`` names, or None."""
    broker = key_broker(args)
    if broker is None:
        return None
    from msgspec.structs import asdict

    from lamina.trust.broker.provider import make_provider

    return make_provider(**asdict(broker))


def key_broker(args: argparse.Namespace) -> KeyBroker | None:
    """Return the broker that ``--kbs`` names, as a value; None without one."""
    if not args.kbs:
        return None
    from lamina.opening.request import KeyBroker

    return KeyBroker(
        url=args.kbs,
        ca_file=args.kbs_ca,
        evidence=args.kbs_evidence,
        measurement=args.kbs_measurement,
        init_data_file=args.kbs_init_data,
    )


def brokers(args: argparse.Namespace) -> Mapping[str, KeyProvider]:
    """Return the key brokers that options name, by their names in
    ``org.opencontainers.image.enc.keys.provider.*``.
    """
    provider = broker_provider(args)
    if provider is None:
        return {}
    from lamina.trust.broker.provider import PROVIDER_NAME

    return {PROVIDER_NAME: provider}


def store_passphrase(args: argparse.Namespace, *, twice: bool = False) -> Secret:
    """Return the passphrase of the broker's store: ``--passphrase-fd`` or ``--passphrase-file``,
    else ``LAMINA_KBS_PASSWORD``, else asked for on the terminal.  Standard input is not read unless
    it is the descriptor: keys come from there.
    """
    import sys

    from lamina.cli.key_options import ask_passphrase
    from lamina.errors import UsageError
    from lamina.trust.crypto.secret import read_passphrase, take_from_environment

    variable = STORE_PASSWORD_ENVIRONMENT[0]
    # Taken in any case: no child may inherit it.
    found = take_from_environment(variable)
    if args.passphrase_fd is not None and args.passphrase_file:
        raise UsageError("--passphrase-fd and --passphrase-file are one too many")
    if args.passphrase_fd is not None:
        if args.passphrase_fd < 0:
            raise UsageError(f"--passphrase-fd {args.passphrase_fd} is no file descriptor")
        return read_passphrase(f"fd={args.passphrase_fd}")
    if args.passphrase_file:
        return read_passphrase(f"file={args.passphrase_file}")
    if found is not None:
        return found
    if not sys.stdin.isatty():
        raise UsageError(
            "there is no passphrase for the key store",
            hint=f"give --passphrase-fd N or --passphrase-file FILE, or set {variable}",
        )
    return ask_passphrase("Passphrase of the key store", twice=twice)
