from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

from lamina.errors import NotFoundError
from lamina.oci.manifest import Descriptor, Manifest
from lamina.oci.reference import parse_reference
from lamina.oci.start_manifest import StartRule
from lamina.opening.find_start import find_start
from lamina.opening.lazy_index import find_index
from lamina.opening.manifest import FoundManifest
from lamina.opening.place import Place
from lamina.store.node import NodeStore

DIGEST = "sha256:" + "7" * 64


class Listing:
    """A registry that counts how often it lists."""

    reference = parse_reference("docker://registry.example/app:1")

    def __init__(self) -> None:
        self.listed: list[str] = []

    def referrers(self, digest: str) -> Iterator[Descriptor]:
        self.listed.append(digest)
        return iter(())

    def manifest(self, which: object = None) -> None:
        raise NotFoundError(f"no {which}")


def test_an_opening_lists_referrers_once(tmp_path: Path) -> None:
    registry = Listing()
    place = Place(registry, NodeStore(tmp_path))  # type: ignore[arg-type]
    config = Descriptor(media_type="x", digest=DIGEST, size=2)
    manifest = Manifest(schema_version=2, config=config)
    assert find_index(place, (manifest, DIGEST)) is None
    found = FoundManifest(manifest, DIGEST)
    assert find_start(place, found, StartRule(), lambda: None) is None
    assert registry.listed == [DIGEST]


def test_two_who_look_at_once_list_once(tmp_path: Path) -> None:
    """A start is looked for by a thread of its own."""
    registry = Listing()
    place = Place(registry, NodeStore(tmp_path))  # type: ignore[arg-type]
    threads = [threading.Thread(target=place.referrers, args=(DIGEST,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert registry.listed == [DIGEST]
