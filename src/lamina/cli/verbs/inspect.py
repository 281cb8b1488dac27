"""``lamina inspect``."""

from __future__ import annotations

from argparse import Namespace
from contextlib import closing
from typing import TYPE_CHECKING, Any, Final

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

if TYPE_CHECKING:
    from lamina.image.access import Access
    from lamina.registry.reference import Reference

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


def _opened_facts(
    args: Namespace, where: Reference, access: Access | None, kind: str
) -> dict[str, Any]:
    """What the metadata says of a native image, or of the index of an ordinary one."""
    from lamina.cli.opening import open_native, tell_unusable
    from lamina.image.errors import NoIndexError, NoKeyError

    try:
        with closing(open_native(args, where, access)) as image:
            assert image.origin is not None
            assert image.origin.reference is not None
            found = native_facts(image)
            if kind == "sealed":
                found |= config_facts(image.config)
            if kind == "oci":
                found["indexed_by"] = image.origin.reference.digest
            return found
    except NoIndexError as error:
        tell_unusable(error)
        return {}
    except NoKeyError:
        return {}


def run(args: Namespace) -> int:
    """Print the facts."""
    from lamina.cli.opening import proven
    from lamina.registry.repository import open_repository

    where, access = proven(args, args.image, refresh=True)
    with open_repository(where, options=client_options(args)) as repository:
        if args.raw:
            print_bytes(repository.manifest(None)[1])
            return 0
        facts = {"reference": args.image, **manifest_facts(repository, args.platform)}
    # The tag may move, and of a resident image it means something else.
    where = where.with_version(tag=where.tag, digest=facts.get("index_digest", facts["digest"]))
    facts |= _opened_facts(args, where, access, facts["kind"])
    if args.json:
        print_json(facts)
    else:
        print_facts(facts, print_line, human_size)
    return 0
