"""Choose the manifest of a platform from an index, as containerd does, with a word on Nydus
entries.

Sources: containerd ``platforms`` (normalisation, ``platformVector``); mixed OCI and Nydus indexes:
RAFS v6 §6.4.
"""

from __future__ import annotations

import platform as machine
from collections.abc import Iterable
from typing import Final, Literal

from lamina.errors import NotFoundError, UsageError
from lamina.registry.manifest import (
    NYDUS_MANIFEST_ARTIFACT,
    NYDUS_OS_FEATURE,
    Descriptor,
    Index,
    Platform,
)

Preference = Literal["nydus", "oci"]
"""Which of two manifests of one platform in a mixed index is wanted."""

_ARCHITECTURES: Final = {
    "x86_64": ("amd64", ""),
    "x86-64": ("amd64", ""),
    "i386": ("386", ""),
    "i686": ("386", ""),
    "aarch64": ("arm64", ""),
    "armhf": ("arm", "v7"),
    "armel": ("arm", "v6"),
    "armv7l": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
}
_DEFAULT_VARIANTS: Final = {
    ("arm64", "v8"): "",
    ("arm64", "8"): "",
    ("amd64", "v1"): "",
    ("arm", ""): "v7",
}


def parse_platform(text: str) -> Platform:
    """Parse ``OS/ARCHITECTURE[/VARIANT]`` and normalise the names; UsageError if it has another
    form.
    """
    parts = text.split("/")
    if not 2 <= len(parts) <= 3 or not all(parts) or not text.isascii():
        raise UsageError(
            f"{text!r} is not a platform",
            hint="write OS/ARCHITECTURE, such as linux/amd64 or linux/arm/v7",
        )
    return normalise(Platform(os=parts[0], architecture=parts[1], variant="".join(parts[2:])))


def host_platform() -> Platform:
    """The platform of this machine."""
    return normalise(Platform(os="linux", architecture=machine.machine()))


def normalise(platform: Platform) -> Platform:
    """The names that the OCI specification uses, default variants spelled one way."""
    architecture = platform.architecture.lower()
    variant = platform.variant.lower()
    if architecture in _ARCHITECTURES:
        architecture, implied = _ARCHITECTURES[architecture]
        variant = variant or implied
    if architecture == "arm" and variant.isdigit():
        variant = f"v{variant}"
    variant = _DEFAULT_VARIANTS.get((architecture, variant), variant)
    return Platform(
        os=platform.os.lower(),
        architecture=architecture,
        variant=variant,
        os_version=platform.os_version,
        os_features=platform.os_features,
    )


def is_nydus(descriptor: Descriptor) -> bool:
    """Whether an index entry is a Nydus manifest (RAFS v6 §6.4: artifactType, formerly
    os.features).
    """
    features = descriptor.platform.os_features if descriptor.platform else ()
    return descriptor.artifact_type == NYDUS_MANIFEST_ARTIFACT or NYDUS_OS_FEATURE in features


def select_platform(
    index: Index, want: str | Platform | None = None, *, prefer: Preference = "nydus"
) -> Descriptor:
    """The index entry that runs best on a platform (None: this machine).

    The exact variant wins over lower ones; among equals the preferred kind wins, then the first.
    Raises NotFoundError that lists the platforms there are.
    """
    wanted = parse_platform(want) if isinstance(want, str) else want or host_platform()
    ranks = {key: rank for rank, key in enumerate(_acceptable(normalise(wanted)))}
    best: tuple[int, bool, int] | None = None
    for position, entry in enumerate(index.manifests):
        rank = _rank(entry, ranks)
        if rank is None:
            continue
        key = (rank, is_nydus(entry) != (prefer == "nydus"), position)
        best = key if best is None else min(best, key)
    if best is None:
        there = ", ".join(sorted(platforms_of(index))) or "none"
        raise NotFoundError(
            f"the image has no manifest for {wanted}", hint=f"it has these platforms: {there}"
        )
    return index.manifests[best[2]]


def runs_on(own: Platform, want: str) -> bool:
    """Whether an image for the platform *own* is one that :func:`select_platform` would take."""
    own = normalise(own)
    names = own.os, own.architecture, own.variant
    return names in _acceptable(normalise(parse_platform(want)))


def platforms_of(index: Index) -> set[str]:
    """The platforms of an index as text; attestations (``unknown/unknown``) are left out."""
    known = (entry.platform for entry in index.manifests if entry.platform is not None)
    return {str(normalise(platform)) for platform in known if platform.os != "unknown"}


def _rank(entry: Descriptor, ranks: dict[tuple[str, str, str], int]) -> int | None:
    if not (entry.is_manifest or entry.is_index):
        return None
    if entry.platform is None:
        # Without a platform only the configuration tells; such an entry is the last resort.
        return len(ranks)
    own = normalise(entry.platform)
    return ranks.get((own.os, own.architecture, own.variant))


def _acceptable(want: Platform) -> Iterable[tuple[str, str, str]]:
    yield want.os, want.architecture, want.variant
    level = int(want.variant[1:]) if want.variant[1:].isdecimal() else 0
    if want.architecture == "amd64":
        for lower in range(min(level, 9) - 1, 0, -1):
            yield want.os, "amd64", "" if lower == 1 else f"v{lower}"
        yield want.os, "386", ""
    elif want.architecture == "arm":
        for lower in range(min(level, 9) - 1, 4, -1):
            yield want.os, "arm", f"v{lower}"
    elif want.architecture == "arm64":
        for lower in range(min(level, 9) - 1, 7, -1):
            yield want.os, "arm64", "" if lower == 8 else f"v{lower}"
        for lower in range(8, 4, -1):
            yield want.os, "arm", f"v{lower}"
