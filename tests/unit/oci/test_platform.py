"""Platform choice, compared with what containerd does."""

from __future__ import annotations

import pytest

from lamina.errors import UsageError
from lamina.oci.manifest import (
    NYDUS_MANIFEST_ARTIFACT,
    NYDUS_OS_FEATURE,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    ImageIndex,
    Platform,
)
from lamina.oci.platform import (
    Preference,
    host_platform,
    is_nydus,
    no_manifest_error,
    parse_platform,
    rank_entries,
)


def best(there: ImageIndex, want: str | None = None, prefer: Preference = "nydus") -> int:
    """The number of the entry that is taken."""
    return rank_entries(there, want, prefer)[0][1].size


def entry(number: int, platform: str | None, *, nydus: str = "") -> Descriptor:
    named = None
    if platform is not None:
        system, architecture, *variant = platform.split("/")
        features = (NYDUS_OS_FEATURE,) if nydus == "feature" else ()
        named = Platform(
            os=system, architecture=architecture, variant="".join(variant), os_features=features
        )
    return Descriptor(
        media_type=OCI_MANIFEST,
        digest=f"sha256:{number:064x}",
        size=number,
        platform=named,
        artifact_type=NYDUS_MANIFEST_ARTIFACT if nydus == "artifact" else "",
    )


def index(*entries: Descriptor) -> ImageIndex:
    return ImageIndex(schema_version=2, media_type=OCI_INDEX, manifests=entries)


@pytest.mark.parametrize(
    ("there", "want", "chosen"),
    [
        (["linux/arm64", "linux/amd64"], "linux/amd64", 1),
        (["linux/386", "linux/amd64"], "linux/amd64", 1),
        (["linux/386", "windows/amd64"], "linux/amd64", 0),
        (["linux/amd64", "linux/amd64/v2", "linux/amd64/v3"], "linux/amd64/v2", 1),
        (["linux/amd64", "linux/amd64/v2"], "linux/amd64/v3", 1),
        (["linux/amd64/v2", "linux/amd64"], "linux/amd64", 1),
        (["linux/arm/v5", "linux/arm/v6", "linux/arm/v7"], "linux/arm/v6", 1),
        (["linux/arm/v5", "linux/arm/v6"], "linux/arm", 1),
        (["linux/arm"], "linux/arm/v7", 0),
        (["linux/arm/v7", "linux/arm64/v8"], "linux/arm64", 1),
        (["linux/arm/v6", "linux/arm/v7"], "linux/arm64", 1),
        (["linux/arm64"], "linux/aarch64/v8", 0),
        (["linux/amd64", "linux/amd64"], "linux/amd64", 0),
        (["unknown/unknown", "linux/x86_64"], "linux/amd64", 1),
        ([None], "linux/amd64", 0),
        ([None, "linux/386"], "linux/amd64", 1),
    ],
)
def test_select(there: list[str | None], want: str, chosen: int) -> None:
    entries = [entry(number, platform) for number, platform in enumerate(there)]
    assert best(index(*entries), want) == chosen


@pytest.mark.parametrize("nydus", ["artifact", "feature"])
def test_nydus_entries_by_preference(nydus: str) -> None:
    mixed = index(
        entry(0, "linux/amd64"), entry(1, "linux/amd64", nydus=nydus), entry(2, "linux/arm64")
    )
    assert is_nydus(mixed.manifests[1])
    assert best(mixed, "linux/amd64") == 1
    assert best(mixed, "linux/amd64", prefer="oci") == 0
    assert best(mixed, "linux/arm64") == 2


def test_the_host_is_the_default() -> None:
    assert best(index(entry(5, str(host_platform())))) == 5


def test_nothing_fits() -> None:
    there = index(entry(0, "linux/s390x"), entry(1, "unknown/unknown"))
    assert rank_entries(there, "linux/amd64", "nydus") == []
    error = no_manifest_error(there.manifests, "linux/amd64")
    assert "no manifest for linux/amd64" in str(error)
    assert error.hint == "it has these platforms: linux/s390x"


def test_other_artifacts_are_not_images() -> None:
    foreign = Descriptor(media_type="application/json", digest="sha256:" + "0" * 64, size=1)
    assert rank_entries(index(foreign), "linux/amd64", "nydus") == []


@pytest.mark.parametrize("text", ["", "linux", "linux/", "/amd64", "a/b/c/d", "linux/ämd64"])
def test_malformed_platform(text: str) -> None:
    with pytest.raises(UsageError, match="not a platform"):
        parse_platform(text)


def test_normal_names() -> None:
    assert str(parse_platform("Linux/AArch64")) == "linux/arm64"
    assert str(parse_platform("linux/armhf")) == "linux/arm/v7"
    assert str(parse_platform("linux/arm/6")) == "linux/arm/v6"
