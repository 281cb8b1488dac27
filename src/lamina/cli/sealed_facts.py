"""What ``lamina inspect`` and ``lamina check`` tell of a sealed image without a key."""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING, Any

from lamina.cli.output import human_size, print_json, print_line
from lamina.cli.progress import open_meter

if TYPE_CHECKING:
    from lamina.cli.image_facts import Lines
    from lamina.oci.manifest import Manifest
    from lamina.opening.open_image import Opening
    from lamina.opening.version import Version


def sealed_facts(manifest: Manifest) -> dict[str, Any]:
    """Suite, recipients by scheme, and the blobs with their Merkle roots.

    Raises FormatError, UnsupportedError.
    """
    from lamina.blob.seal import SUITE
    from lamina.opening.sealed import public_blobs
    from lamina.trust.encryption.recipients import recipient_counts

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
    """Print the facts of a sealed image for people."""
    wrapped = ", ".join(f"{name} ({count})" for name, count in facts["recipients"].items())
    line(f"  sealed     {facts['suite']}, keys for {wrapped or 'nobody'}")
    line(f"  metadata   {human_size(facts['metadata_bytes'])}, encrypted")
    for blob in facts["blobs"]:
        kind = "" if blob["class"] == "private" else f", {blob['class']}"
        size = human_size(blob["stored_bytes"])
        line(f"             {size} in {blob['pieces']} sealed pieces{kind}")
        line(f"             root {blob['root']}")


def check_sealed(args: Namespace, opening: Opening, version: Version) -> int:
    """``lamina check`` without a key: leaves against roots, with ``--data`` all pieces against
    leaves.
    """
    from lamina.opening.sealed_check import check_without_key

    manifest = opening.manifest(version).manifest
    with open_meter() as meter:
        advance = meter.add("check") if args.data else None
        found = check_without_key(manifest, opening.place.repository, advance)
    if args.json:
        print_json({"ok": True, "key": False, **found._asdict()})
        return 0
    read = f", {human_size(found.read_bytes)} read" if args.data else ""
    print_line(f"{found.pieces} sealed pieces in {found.blobs} blobs{read}: no fault")
    print_line("names and contents need a key: --decryption-key")
    return 0
