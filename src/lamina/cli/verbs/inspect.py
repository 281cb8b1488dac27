"""``lamina inspect``."""

from __future__ import annotations

from argparse import Namespace
from contextlib import closing
from typing import Any, Final

from lamina.cli.image_facts import (
    FACT_KEYS,
    config_facts,
    manifest_facts,
    native_facts,
    print_facts,
)
from lamina.cli.options import (
    REGISTRY_ENVIRONMENT,
    STORE_ENVIRONMENT,
    add_output_options,
    add_registry_options,
    client_options,
)
from lamina.cli.output import human_size, print_bytes, print_json, print_line
from lamina.cli.page import Page
from lamina.cli.parser import Parser

PAGE: Final = Page(
    """
    Tells what an image is made of: kind, digest, platform, configuration and layers, and of a
    native image, or of one that has an index, its metadata and data blobs and how much of them is
    on this machine already. Manifest, configuration and metadata are fetched, no data.

    Of a sealed image it tells without a key what everybody can learn, and with --decryption-key
    the rest.
    """,
    examples=(
        ("lamina inspect localhost:5000/node", "For people."),
        ("lamina inspect --json IMAGE | jq -r .digest", "The digest behind a tag."),
        ("lamina inspect --raw oci:images:node", "The bytes of the manifest."),
    ),
    json_keys=FACT_KEYS,
    environment=(STORE_ENVIRONMENT, *REGISTRY_ENVIRONMENT),
    see_also=("ls", "check"),
)


def add_arguments(parser: Parser) -> None:
    """Declare the options and arguments."""
    parser.add_argument("image", metavar="IMAGE", help="reference of an image of any kind")
    parser.add_argument(
        "--raw", action="store_true", help="print the manifest or index as it is stored"
    )
    add_registry_options(parser)
    add_output_options(parser)


def _opened_facts(args: Namespace, kind: str) -> dict[str, Any]:
    """What the metadata says of a native image, or of the index of an ordinary one."""
    from lamina.cli.opening import open_native
    from lamina.image.errors import NoIndexError, NoKeyError

    try:
        with closing(open_native(args, args.image)) as image:
            assert image.origin is not None
            assert image.origin.reference is not None
            found = native_facts(image)
            if kind == "sealed":
                found |= config_facts(image.config)
            if kind == "oci":
                found["indexed_by"] = image.origin.reference.digest
            return found
    except (NoIndexError, NoKeyError):
        return {}


def run(args: Namespace) -> int:
    """Print the facts."""
    from lamina.cli.opening import proven_reference
    from lamina.registry.repository import open_repository

    options, reference = client_options(args), proven_reference(args, args.image)
    with open_repository(reference, options=options) as repository:
        if args.raw:
            print_bytes(repository.manifest(None)[1])
            return 0
        facts = {"reference": args.image, **manifest_facts(repository, args.platform)}
    facts |= _opened_facts(args, facts["kind"])
    if args.json:
        print_json(facts)
    else:
        print_facts(facts, print_line, human_size)
    return 0
