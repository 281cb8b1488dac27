"""Which manifests of a multi-platform image a build is about."""

from __future__ import annotations

from collections.abc import Sequence

from lamina.errors import NotFoundError
from lamina.registry.manifest import Descriptor, Index, Platform
from lamina.registry.platform import is_nydus, normalise


def ordinary_manifests(index: Index, wanted: Sequence[Platform], where: str) -> list[Descriptor]:
    """Return the manifests of the wanted platforms, of all if there are none.

    Attestations and Nydus images are passed over.  Raises NotFoundError if ``where``, as the user
    calls it, lacks a wanted platform.
    """
    chosen = []
    for entry in index.manifests:
        known = entry.platform is None or entry.platform.os != "unknown"
        if (
            entry.is_manifest
            and known
            and not is_nydus(entry)
            and is_wanted(entry.platform, wanted)
        ):
            chosen.append(entry)
    if not chosen or len(chosen) < len(wanted):
        there = sorted(str(entry.platform) for entry in index.manifests if entry.platform)
        raise NotFoundError(
            f"{where} has no image of some wanted platform.",
            hint=f"It has: {', '.join(there) or 'no platforms'}.",
        )
    return chosen


def is_wanted(platform: Platform | None, wanted: Sequence[Platform]) -> bool:
    """Return whether a platform is among the wanted ones; any is if there are none."""
    if not wanted:
        return True
    if platform is None:
        return False
    own = normalise(platform)
    return any(
        (own.os, own.architecture, own.variant) == (want.os, want.architecture, want.variant)
        for want in wanted
    )
