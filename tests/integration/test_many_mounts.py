"""Many mounts of one image: the last costs what the tenth did, in messages, threads and files, and
the list of them is whole.  (How long they take is bench/many_mounts.py's.)
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from lamina.linux import mount_table
from lamina.linux.superblock import SuperblockWatch
from lamina.serve import detach, mounts
from lamina.serve.mounts import MountState, list_mounts, unmount
from lamina.serve.service import mounting
from lamina.serve.service.channel import Channel
from lamina.serve.service.client import service_status
from lamina.serve.service.messages import PAGE_MOUNTS
from tests.support.native_images import build_image, image_files, some_bytes
from tests.support.serving import sample_spec
from tests.support.tools import require_erofs, require_kernel, require_root
from tests.support.waiting import wait_for_no_mounts

pytestmark = pytest.mark.kernel

COUNT = PAGE_MOUNTS + 10
FIRST = 10
"""Until then the image is opened, and threads are started."""
FILES = {b"file-%d" % number: some_bytes(20_000, number) for number in range(3)}


class Cost(NamedTuple):
    """What a mount has cost its client; ``tables`` are those of all mounts or superblocks of the
    machine.
    """

    messages: int
    sent_bytes: int
    tables: int


@pytest.fixture(params=("fuse-blob", "fuse"))
def device(request: pytest.FixtureRequest) -> str:
    require_root()
    if request.param != "fuse":
        require_erofs()
        require_kernel(6, 12, request.param)
    return str(request.param)


@pytest.fixture
def spent(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Messages, bytes, and readings of whole tables of this process so far."""
    spent = [0, 0, 0]
    send_packet, read_table = Channel.send_packet, mount_table.read_mount_table

    def count(self: Channel, packet: bytes, fds: list[int] = []) -> None:  # noqa: B006
        spent[0] += 1
        spent[1] += len(packet)
        send_packet(self, packet, fds)

    def count_table(*arguments: str) -> list[mount_table.MountEntry]:
        spent[2] += 1
        return read_table(*arguments)

    names = SuperblockWatch._names

    def count_names(self: SuperblockWatch) -> frozenset[str]:
        spent[2] += self._sysfs != os.devnull
        return names(self)

    monkeypatch.setattr(Channel, "send_packet", count)
    monkeypatch.setattr(SuperblockWatch, "_names", count_names)
    for module in (mount_table, mounts, detach):
        monkeypatch.setattr(module, "read_mount_table", count_table)
    return spent


@pytest.fixture
def unmounted() -> Iterator[None]:
    yield
    for status in list_mounts():
        unmount(status.record.mountpoint)
    wait_for_no_mounts()


def counted(folder: str) -> int:
    return len(os.listdir(folder))


@pytest.mark.usefixtures("unmounted")
def test_the_last_costs_what_the_tenth_did(device: str, spent: list[int], tmp_path: Path) -> None:
    image_files(tmp_path / "image", build_image(FILES, chunk_size=4096, blob_count=2))
    costs: list[Cost] = []
    before = {"task": 0, "fd": 0}
    worker = 0
    for number in range(COUNT):
        mountpoint = tmp_path / f"{number:04}"
        mountpoint.mkdir()
        spent[:] = [0, 0, 0]
        mounting.mount_by_service(
            sample_spec(tmp_path / "image", mountpoint, tmp_path / "store", device)
        )
        costs.append(Cost(*spent))
        if number + 1 == FIRST:
            status = service_status([])
            assert status is not None
            worker = status.pids["worker"]
            before = {name: counted(f"/proc/{worker}/{name}") for name in before}
    assert costs[-1].messages == costs[FIRST].messages <= 5
    assert costs[-1].sent_bytes < costs[FIRST].sent_bytes + 100
    assert costs[-1].tables == costs[FIRST].tables == 0
    more = COUNT - FIRST
    # Those of an idle mount are entries of a table; threads are for reads.
    assert counted(f"/proc/{worker}/task") <= before["task"] + 2
    assert counted(f"/proc/{worker}/fd") <= before["fd"] + 2 * more + 4
    for name, content in FILES.items():
        # The chunk tables lie in the blobs: what there is to have is known once they were read.
        assert (tmp_path / "0000" / name.decode()).read_bytes() == content
    told = list_mounts()
    assert len(told) == COUNT
    assert {each.state for each in told} == {MountState.SERVED}
    total = sum(map(len, FILES.values()))
    assert {each.total_bytes for each in told} == {total}
    # And each is served.
    for each in told[:: COUNT // 7]:
        for name, content in FILES.items():
            assert (Path(each.record.mountpoint) / os.fsdecode(name)).read_bytes() == content
    (one,) = list_mounts(told[-1].record.mountpoint)
    assert (one.ready_bytes, one.total_bytes) == (total, total)
    spent[:] = [0, 0, 0]
    unmount(one.record.mountpoint)
    assert spent[2] == 0
    assert len(list_mounts()) == COUNT - 1
