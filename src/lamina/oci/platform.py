"""Choose the manifest of a platform from an index, as containerd does, with a word on Nydus
entries.

Sources: containerd ``platforms`` (normalisation, ``platformVector``); mixed OCI and Nydus indexes:
RAFS v6 §6.4.
"""

from __future__ import annotations

import platform as machine
from collections.abc import Iterable, Sequence
from typing import Final, Literal

from lamina.errors import NotFoundError, UsageError
from lamina.oci.manifest import (
    CONFIG_TYPES,
    NYDUS_MANIFEST_ARTIFACT,
    NYDUS_OS_FEATURE,
    SEALED_ARTIFACT,
    Descriptor,
    ImageIndex,
    Platform,
)

Preference = Literal["nydus", "oci"]
"""Which of two manifests of one platform in a mixed index is wanted."""

_IMAGE_TYPES: Final = ("", *CONFIG_TYPES, NYDUS_MANIFEST_ARTIFACT, SEALED_ARTIFACT)
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
    """Return the platform of this machine."""
    return normalise(Platform(os="linux", architecture=machine.machine()))


def normalise(platform: Platform) -> Platform:
    """Return the names that the OCI specification uses, default variants spelled one way."""
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
    """Tell whether an index entry is a Nydus manifest (RAFS v6 §6.4: artifactType, formerly
    os.features).
    """
    features = descriptor.platform.os_features if descriptor.platform else ()
    return descriptor.artifact_type == NYDUS_MANIFEST_ARTIFACT or NYDUS_OS_FEATURE in features


def is_artifact(descriptor: Descriptor) -> bool:
    """Tell whether an index entry is typed as something else than an image: signatures, tables of
    SOCI.

    Some registries and tools give images the type of their configuration.
    """
    return descriptor.artifact_type not in _IMAGE_TYPES


def says_platform(platform: Platform | None) -> bool:
    """Tell whether an entry says for which platform it is; else only its configuration tells."""
    return platform is not None and bool(platform.os and platform.architecture)


def rank_entries(
    index: ImageIndex, want: str | Platform | None, prefer: Preference
) -> list[tuple[int, Descriptor]]:
    """Return the entries of an index that may run on a platform (None: this machine), the best
    first, with a number that is the same for those that fit as well as each other.

    The exact variant wins over lower ones; among equals the preferred kind wins, then the first.
    """
    acceptable = list(_acceptable(normalise(_platform(want))))
    ranks = {key: rank for rank, key in enumerate(acceptable)}
    found = []
    for position, entry in enumerate(index.manifests):
        rank = _rank(entry, ranks)
        if rank is not None:
            found.append((rank, is_nydus(entry) != (prefer == "nydus"), position, entry))
    found.sort(key=lambda item: item[:3])
    return [(rank, entry) for rank, _, _, entry in found]


def runs_on(own: Platform, want: str | Platform | None) -> bool:
    """Tell whether an image for the platform *own* is one that :func:`rank_entries` would take."""
    own = normalise(own)
    names = own.os, own.architecture, own.variant
    return names in _acceptable(normalise(_platform(want)))


def is_wanted(platform: Platform | None, wanted: Sequence[Platform]) -> bool:
    """Tell whether a platform is among the wanted ones; any is if there are none."""
    if not wanted:
        return True
    if platform is None:
        return False
    own = normalise(platform)
    return any(
        (own.os, own.architecture, own.variant) == (want.os, want.architecture, want.variant)
        for want in wanted
    )


def no_manifest_error(entries: Iterable[Descriptor], want: str | Platform | None) -> NotFoundError:
    """Return what is raised where none of some entries is for a platform."""
    return NotFoundError(
        f"the image has no manifest for {_platform(want)}",
        hint=f"it has these platforms: {platform_names(entries) or 'none'}",
    )


def platform_names(entries: Iterable[Descriptor]) -> str:
    """Return the platforms of some entries, for people."""
    return ", ".join(sorted(_platforms(entries)))


def _platforms(entries: Iterable[Descriptor]) -> set[str]:
    known = (entry.platform for entry in entries if entry.platform is not None)
    return {
        str(normalise(platform))
        for platform in known
        if platform.os != "unknown" and says_platform(platform)
    }


def _platform(want: str | Platform | None) -> Platform:
    return parse_platform(want) if isinstance(want, str) else want or host_platform()


def _rank(entry: Descriptor, ranks: dict[tuple[str, str, str], int]) -> int | None:
    if not (entry.is_manifest or entry.is_index):
        return None
    rank: int | None = len(ranks)
    if entry.platform is not None and says_platform(entry.platform):
        own = normalise(entry.platform)
        rank = ranks.get((own.os, own.architecture, own.variant))
    # Without a platform only the configuration tells; such an entry is the last resort, and what
    # is typed as something else comes after it.
    return rank if rank is None or not is_artifact(entry) else rank + len(ranks) + 1


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
