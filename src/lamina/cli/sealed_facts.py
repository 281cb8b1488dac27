"""What ``lamina inspect`` and ``lamina check`` tell of a sealed image without a key."""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING, Any

from lamina.cli.options import client_options
from lamina.cli.output import human_size, print_json, print_line
from lamina.cli.progress import open_meter

if TYPE_CHECKING:
    from lamina.cli.image_facts import Lines
    from lamina.registry.manifest import Manifest
    from lamina.registry.reference import Reference


def sealed_facts(manifest: Manifest) -> dict[str, Any]:
    """Suite, recipients by scheme, and the blobs with their Merkle roots.

    Raises FormatError, UnsupportedError.
    """
    from lamina.blob.seal import SUITE
    from lamina.image.sealed import public_blobs
    from lamina.trust.recipients import recipient_counts

    blobs = [
        {
            "digest": blob.descriptor.digest,
            "stored_bytes": blob.descriptor.size,
            "pieces": blob.piece_count,
            "root": blob.root.hex(),
            "class": blob.seal_class.value,
        }
        for blob in public_blobs(manifest)
    ]
    last = manifest.layers[-1]
    return {
        "suite": SUITE,
        "recipients": recipient_counts(last.annotations),
        "metadata_bytes": last.size,
        "blobs": blobs,
    }


def print_sealed(facts: dict[str, Any], line: Lines) -> None:
    """The same for people."""
    wrapped = ", ".join(f"{name} ({count})" for name, count in facts["recipients"].items())
    line(f"  sealed     {facts['suite']}, keys for {wrapped or 'nobody'}")
    line(f"  metadata   {human_size(facts['metadata_bytes'])}, encrypted")
    for blob in facts["blobs"]:
        kind = "" if blob["class"] == "private" else f", {blob['class']}"
        size = human_size(blob["stored_bytes"])
        line(f"             {size} in {blob['pieces']} sealed pieces{kind}")
        line(f"             root {blob['root']}")


def check_sealed(args: Namespace, where: Reference) -> int:
    """``lamina check`` without a key: leaves against roots, with ``--data`` all pieces against
    leaves.
    """
    from lamina.cli.opening import node_store
    from lamina.image.open import find_manifest
    from lamina.image.sealed_check import check_without_key
    from lamina.registry.repository import open_repository

    with open_repository(where, options=client_options(args)) as repository:
        manifest, _ = find_manifest(repository, node_store(args), where, args.platform)
        with open_meter() as meter:
            advance = meter.add("check") if args.data else None
            found = check_without_key(manifest, repository, advance)
    if args.json:
        print_json({"ok": True, "key": False, **found._asdict()})
        return 0
    read = f", {human_size(found.read_bytes)} read" if args.data else ""
    print_line(f"{found.pieces} sealed pieces in {found.blobs} blobs{read}: no fault")
    print_line("names and contents need a key: --decryption-key")
    return 0
