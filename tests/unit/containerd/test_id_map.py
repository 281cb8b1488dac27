"""Snapshots of containers in user namespaces."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from lamina.containerd.id_map import GID_LABEL, UID_LABEL, IdMap, read_ids
from lamina.containerd.snapshot import REF_LABEL
from lamina.errors import UsageError
from tests.unit.containerd.client import Client, served

LABELS = {UID_LABEL: "0:100000:65536", GID_LABEL: "0:200000:65536"}
IDS = ["uidmap=0:100000:65536", "gidmap=0:200000:65536"]


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    with served(tmp_path / "r") as client:
        client.prepare("ns/1/a")
        client.commit("ns/2/base", "ns/1/a")
        yield client


def options(mounts: list[object]) -> list[str]:
    [mount] = mounts
    return [each for each in mount.options if "map=" in each]  # type: ignore[attr-defined]


@pytest.mark.skipif(os.geteuid() != 0, reason="the folder is given to another user")
def test_a_container_in_a_user_namespace(client: Client, tmp_path: Path) -> None:
    """Its changes belong to the root inside, and its layers are seen through the mapping."""
    assert options(client.prepare("ns/3/container", "ns/2/base", LABELS)) == IDS
    assert options(client.mounts("ns/3/container")) == IDS
    status = os.lstat(tmp_path / "r/s/2/fs")
    assert (status.st_uid, status.st_gid) == (100000, 200000)
    assert options(client.prepare("ns/4/other", "ns/2/base")) == []


def test_an_image_maps_nobody(client: Client, tmp_path: Path) -> None:
    """The labels of a layer may come from its manifest."""
    for key, labels in (("ns/3/extract-1-a x", LABELS), ("ns/3/x", {**LABELS, REF_LABEL: "x"})):
        assert options(client.prepare(key, "ns/2/base", labels)) == []
        assert options(client.mounts(key)) == []
    assert {os.lstat(path).st_uid for path in (tmp_path / "r/s").glob("*/fs")} == {os.geteuid()}


@pytest.mark.parametrize(
    "labels",
    [
        {UID_LABEL: "0:1:2"},
        {GID_LABEL: "0:1:2"},
        {**LABELS, UID_LABEL: "0:1"},
        {**LABELS, UID_LABEL: "0:1:2,lowerdir=/etc"},
        {**LABELS, GID_LABEL: "1:100000:5"},
    ],
)
def test_mappings_that_are_none(client: Client, labels: dict[str, str]) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        client.prepare("ns/3/container", "ns/2/base", labels)
    assert caught.value.code().name == "INVALID_ARGUMENT"


def test_several_ranges() -> None:
    ids = IdMap("0:1000:1,1:5000:10", "0:7:1")
    assert ids.on_host(0, 0) == (1000, 7)
    assert ids.on_host(3, 0) == (5002, 7)
    with pytest.raises(UsageError):
        ids.on_host(11, 0)
    assert read_ids({}, "base") == IdMap()


def test_what_containerd_has_changed_the_owners_of_is_not_mapped_again(client: Client) -> None:
    client.prepare("ns/3/x", "ns/2/base")
    client.commit("ns/4/sha256:00-remap", "ns/3/x")
    assert options(client.prepare("ns/5/container", "ns/4/sha256:00-remap", LABELS)) == []
