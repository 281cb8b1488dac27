"""``lamina inspect``."""

from __future__ import annotations

from argparse import Namespace
from contextlib import closing
from typing import TYPE_CHECKING, Any, Final

from lamina.cli.help_text import HelpPage
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
)
from lamina.cli.output import human_size, print_bytes, print_json, print_line
from lamina.cli.parser import Parser

if TYPE_CHECKING:
    from lamina.opening.open_image import Opening
    from lamina.opening.version import Version

HELP: Final = HelpPage(
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


def _opened_facts(opening: Opening, version: Version, kind: str) -> dict[str, Any]:
    """Return what the metadata says of a native image, or of the index of an ordinary one."""
    from lamina.cli.opening import tell_unusable
    from lamina.image.errors import NoIndexError, NoKeyError

    try:
        with closing(opening.open(version)) as image:
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
    from lamina.cli.opening import begin_opening, open_request
    from lamina.oci.manifest import Descriptor, detect_media_type

    with begin_opening(open_request(args, args.image, refresh=True)) as opening:
        version = opening.version()
        digest, data = opening.place.named(version.reference)
        if args.raw:
            print_bytes(data)
            return 0
        media_type = detect_media_type(data, f"manifest of {args.image}")
        top = Descriptor(media_type=media_type, digest=digest, size=len(data)), data
        facts = {"reference": args.image, **manifest_facts(opening.place, top, args.platform)}
        facts |= _opened_facts(opening, version, facts["kind"])
    if args.json:
        print_json(facts)
    else:
        print_facts(facts, print_line, human_size)
    return 0
