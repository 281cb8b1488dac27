"""``lamina policy``."""

from __future__ import annotations

from argparse import Namespace
from typing import Any, Final

from lamina.cli.help_text import HelpPage
from lamina.cli.options import (
    REGISTRY_ENVIRONMENT,
    add_output_options,
    add_signing_registry_options,
    client_options,
)
from lamina.cli.output import print_json, print_line
from lamina.cli.parser import Parser

HELP: Final = HelpPage(
    """
    With check, reads a policy.json of the containers tools with all keys that it names, strictly:
    an unknown field or a key that is none makes it invalid. With IMAGE, tells which scope decides
    about it and what is demanded, and proves that the image fulfils it.
    """,
    examples=(
        ("lamina policy check policy.json", "Is the file right?"),
        ("lamina policy check policy.json quay.io/app:1", "Would the image be accepted?"),
    ),
    json_keys=(
        ("policy", "path of the file"),
        ("scopes", "number of scopes beside the default"),
        ("scope", "the scope that decides about IMAGE"),
        ("requirements", "the types of its requirements"),
        ("digest", "digest of the manifest that was accepted"),
    ),
    environment=REGISTRY_ENVIRONMENT,
    see_also=("verify",),
)


def add_arguments(parser: Parser) -> None:
    """Declare the options and arguments."""
    parser.add_argument("action", choices=("check",), help="what to do")
    parser.add_argument("policy", metavar="FILE", help="a policy.json")
    parser.add_argument("image", metavar="IMAGE", nargs="?", help="reference of an image")
    add_signing_registry_options(parser)
    add_output_options(parser)


def run(args: Namespace) -> int:
    """Check the file, and the image if there is one."""
    from lamina.oci.reference import parse_reference
    from lamina.registry.open_repository import open_repository
    from lamina.trust.signatures.policy import load_policy

    policy = load_policy(args.policy)
    scopes = sum(len(found) for found in policy.transports.values())
    report: dict[str, Any] = {"policy": args.policy, "scopes": scopes}
    if args.image:
        reference = parse_reference(args.image)
        scope, requirements = policy.requirements(reference)
        report |= {"scope": scope, "requirements": [item.kind for item in requirements]}
        with open_repository(reference, options=client_options(args)) as repository:
            report["digest"] = policy.check(repository).descriptor.digest
    if args.json:
        print_json(report)
        return 0
    print_line(f"{args.policy} is valid: {scopes} scopes beside the default")
    if args.image:
        demands = ", ".join(report["requirements"])
        print_line(f"{args.image} is accepted by {report['scope']} ({demands}): {report['digest']}")
    return 0
