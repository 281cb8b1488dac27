"""``lamina check``."""

from __future__ import annotations

import os
from argparse import Namespace
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Final

from lamina.cli import console
from lamina.cli.help_text import HelpPage
from lamina.cli.options import (
    REGISTRY_ENVIRONMENT,
    STORE_ENVIRONMENT,
    add_output_options,
    add_registry_options,
    client_options,
)
from lamina.cli.output import human_size, print_json, print_line
from lamina.cli.parser import Parser
from lamina.cli.progress import open_meter
from lamina.errors import DifferenceError, UsageError

if TYPE_CHECKING:
    from lamina.content.lazy_image import LazyImage
    from lamina.image.base import Image

HELP: Final = HelpPage(
    """
    With one native image: verifies every rule of its metadata and chunk tables and names the
    first one that is broken. With --data every chunk is read from where the image is, not from
    the node store, and compared with its digest.

    With one ordinary image, or an index: the same of the index. --data then also unpacks the
    layers, which proves that the index tells nothing but what is in them.

    Of a sealed image without a key: verifies the leaf tables against the Merkle roots in the
    manifest, and with --data every stored piece, so that whoever keeps ciphertext only can tell
    whether it is the right one.

    With two: compares the whole trees, of which each may be a native image, an ordinary OCI
    image or a folder: names, kinds, modes, owners, times, sizes, contents, link targets, hard
    links, device numbers and extended attributes. Every difference is one line.
    """,
    examples=(
        ("lamina check localhost:5000/node", "Is the metadata sound?"),
        ("lamina check --data oci:native:debian", "Is every byte as promised?"),
        ("lamina check oci:images:debian oci:native:debian", "Did the conversion keep everything?"),
        ("lamina check oci:native:debian ./rootfs", "Compare with a folder."),
    ),
    json_note="""
    With two trees one object a line for every difference (path, what, a, b), then in any case a
    last one with the result.
    """,
    json_keys=(
        ("path", "where the trees differ"),
        ("what", "in what: missing, kind, mode, owner, mtime, size, content, target, links, …"),
        ("a, b", "the values on both sides"),
        ("ok", "in the last object: whether all is well"),
        ("differences", "in the last object, of two trees: how many"),
        ("inodes, blobs, chunks", "in the last object, of one image: how many were checked"),
        ("key, pieces", "of a sealed image without a key: false, and how many pieces it has"),
        ("read_bytes", "in the last object, with --data: plain bytes that were compared"),
    ),
    environment=(STORE_ENVIRONMENT, *REGISTRY_ENVIRONMENT),
    see_also=("inspect", "convert"),
)


def add_arguments(parser: Parser) -> None:
    """Declare the options and arguments."""
    parser.add_argument("a", metavar="A", help="reference of an image, or with B also a folder")
    parser.add_argument(
        "b", metavar="B", nargs="?", help="image or folder to compare with (none: check A alone)"
    )
    parser.add_argument("--data", action="store_true", help="of one image also read every chunk")
    add_registry_options(parser)
    add_output_options(parser)


def run(args: Namespace) -> int:
    """Check one image or compare two trees.  Raises FormatError, IntegrityError,
    DifferenceError.
    """
    if args.b is not None:
        return _compare(args)
    from lamina.cli.opening import begin_opening, is_folder, open_request
    from lamina.image.errors import NoKeyError

    if is_folder(args.a):
        raise UsageError(
            "a folder alone has nothing to check", hint="give an image to compare with"
        )
    with begin_opening(open_request(args, args.a)) as opening:
        version = opening.version()
        try:
            image = opening.open(version)
        except NoKeyError:
            from lamina.cli.sealed_facts import check_sealed

            return check_sealed(args, opening, version)
    with closing(image):
        return _check_one(args, image)


def _compare(args: Namespace) -> int:
    from lamina.cli.opening import open_any
    from lamina.trust.encryption.recipients import portable_key

    if args.data:
        raise UsageError("--data is for one image; two trees are always compared with their data")
    # What an index tells is to be compared with the layers, and not with itself.
    args.index = "never"
    # Both are opened with them, and a descriptor gives its passphrase once.
    args.decryption_key = list(map(portable_key, args.decryption_key))
    with ExitStack() as stack:
        first = stack.enter_context(closing(open_any(args, args.a)))
        second = stack.enter_context(closing(open_any(args, args.b)))
        count = _tell_differences(args, first, second)
    if args.json:
        print_json({"ok": not count, "differences": count})
    if count:
        raise _different(count, args.a, args.b)
    if not args.json:
        print_line("the trees are equal")
    return 0


def _tell_differences(args: Namespace, first: Image, second: Image) -> int:
    from lamina.image.compare import compare

    count = 0
    for difference in compare(first, second):
        count += 1
        if args.json:
            print_json(
                {
                    "path": os.fsdecode(difference.path),
                    "what": difference.what,
                    "a": difference.left,
                    "b": difference.right,
                }
            )
        else:
            print_line(str(difference))
    return count


def _different(count: int, a: str, b: str) -> DifferenceError:
    noun = "difference" if count == 1 else "differences"
    return DifferenceError(f"{count} {noun} between {a} and {b}")


def _check_one(args: Namespace, image: LazyImage) -> int:
    from lamina.blob.check import check_table
    from lamina.erofs.check import check_bootstrap

    differences = 0
    bootstrap = image.bootstrap
    check_bootstrap(bootstrap.view)
    result = {
        "inodes": bootstrap.inode_count,
        "blobs": len(bootstrap.blobs),
        "chunks": sum(entry.chunk_count for entry in bootstrap.blobs),
    }
    for blob in image.blobs:
        check_table(blob.table)
    if args.data:
        result["read_bytes"] = _check_data(image)
        differences = _prove_index(args, image)
    _tell_checked(args, result, differences)
    return 0


def _tell_checked(args: Namespace, result: dict[str, int], differences: int) -> None:
    """Print what was checked.  Raises DifferenceError if an index is not what its image is."""
    if args.json:
        counted = {"differences": differences} if differences else {}
        print_json({"ok": not differences, **counted, **result})
    if differences:
        raise _different(differences, args.a, "its index")
    if not args.json:
        read = f"{human_size(result['read_bytes'])} read" if args.data else "data not read (--data)"
        print_line(
            f"{result['inodes']} inodes, {result['chunks']} chunks in {result['blobs']} blobs"
            f", {read}: no fault"
        )


def _prove_index(args: Namespace, image: LazyImage) -> int:
    """Compare an index with the image that it is of; return the number of differences."""
    from lamina.build.source_image import open_source_image
    from lamina.opening.lazy_index import is_index_image

    origin = image.origin
    assert origin is not None
    assert origin.manifest is not None
    assert origin.reference is not None
    if not is_index_image(origin.manifest):
        return 0
    assert origin.manifest.subject is not None
    subject = origin.reference.with_version(digest=origin.manifest.subject.digest)
    with closing(open_source_image(subject, options=client_options(args))) as wanted:
        return _tell_differences(args, wanted, image)


def _check_data(image: LazyImage) -> int:
    """Read all pieces of all blobs from their source; return the plain bytes."""
    from lamina.content.verify_blob import verify_blob

    read_bytes = 0
    with open_meter() as meter:
        advance = meter.add("check", sum(blob.size_bytes for blob in image.blobs))
        for blob in image.blobs:
            read_bytes += verify_blob(blob, advance)
    console.info(f"{human_size(read_bytes)} verified")
    return read_bytes
