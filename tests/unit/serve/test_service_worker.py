from __future__ import annotations

import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from lamina.content.statistics import Statistics
from lamina.errors import StoreError
from lamina.http.client_options import ClientOptions
from lamina.opening.request import OpenRequest
from lamina.serve.service import shared_images
from lamina.serve.service.channel import Channel
from lamina.serve.service.handover import MountHandover
from lamina.serve.service.lazy_open import LazilyOpenedImage
from lamina.serve.service.messages import (
    PAGE_MOUNTS,
    Cost,
    Coverage,
    Failed,
    Hold,
    Message,
    Open,
    Status,
    StatusPage,
)
from lamina.serve.service.reserved import ReservedNumbers
from lamina.serve.service.shared_images import SharedImages
from lamina.serve.service.spec import MountSpec
from lamina.serve.service.worker import Worker

OPENING = OpenRequest.__struct_fields__
SPEC = MountSpec(
    image=OpenRequest(reference="oci:x", store="/store"), mountpoint="/mnt", device="fuse"
)

COST = Cost(fetched_bytes=7, waited_s=0.5)
"""What :class:`Image` cost."""


class Blob:
    """A blob of which a part is here, and whose hold cannot be recorded."""

    ready_bytes = 30
    chunk_bytes = 100

    def hold_through(self, _watch: object, _owner: str) -> None:
        raise StoreError("the disk is full")


class Blobs(list[Blob]):
    """Blobs, of which those before one can be had at once."""

    at_hand_count = 2

    def at_hand(self, index: int) -> Blob | None:
        return self[index] if index < self.at_hand_count else None


class Image:
    """An image that can be closed."""

    statistics = Statistics(fetched_bytes=7)
    waited_s = 0.5

    def __init__(self, name: str = "/b") -> None:
        self.bootstrap_path = name
        self.origin = None
        self.is_early = False
        self.blobs = Blobs([Blob(), Blob()])
        self.closed = 0

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def supervisor() -> Iterator[Channel]:
    ours, theirs = Channel.pair()
    ours.settimeout(30)
    ours.worker = Worker(theirs, ReservedNumbers(()))  # type: ignore[attr-defined]
    yield ours
    ours.close()


def worker_of(supervisor: Channel) -> Worker:
    return cast("Any", supervisor).worker


def answer(supervisor: Channel) -> Message:
    received = supervisor.receive()
    assert received is not None
    return received.message


def test_a_hold_of_an_image_that_another_worker_opened(supervisor: Channel) -> None:
    worker_of(supervisor)._do(Hold(number="1", watch=()), [])
    assert isinstance(answer(supervisor), Failed)


def test_a_hold_that_fails_is_answered(supervisor: Channel) -> None:
    """The client waits for it without a limit."""
    worker_of(supervisor)._opened["1"] = LazilyOpenedImage(SPEC, cast("Any", Image()))
    worker_of(supervisor)._do(Hold(number="1", watch=()), [])
    failed = answer(supervisor)
    assert isinstance(failed, Failed)
    assert "the disk is full" in failed.error.message


def test_a_thread_that_cannot_be_started_is_an_answer(
    supervisor: Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    worker = worker_of(supervisor)
    monkeypatch.setattr(threading.Thread, "start", start)
    worker._do(Open(number="1", spec=SPEC), [])
    failed = answer(supervisor)
    assert isinstance(failed, Failed)
    assert failed.number == "1"
    assert "thread" in failed.error.message
    assert failed.error.hint is not None


def serve(worker: Worker, count: int, late: LazilyOpenedImage) -> None:
    for number in range(count):
        spec = msgspec.structs.replace(SPEC, mountpoint=f"/mnt/{number:05}")
        worker.kept[f"1-{number}"] = MountHandover(f"1-{number}", spec, "fuse")
        served = SimpleNamespace(image=late, leave_if_complete=lambda: None)
        worker._served[f"1-{number}"] = cast("Any", served)


def pages(supervisor: Channel, *wanted: str) -> list[StatusPage]:
    found: list[StatusPage] = []
    after = ""
    while not found or found[-1].more:
        message = Status(number="9", mountpoints=wanted or None, after=after)
        worker_of(supervisor)._do(message, [])
        page = answer(supervisor)
        assert isinstance(page, StatusPage)
        found.append(page)
        after = max(page.mounts, default="")
    return found


@pytest.mark.parametrize("count", [0, 1, PAGE_MOUNTS, PAGE_MOUNTS + 1, 2000])
def test_all_mounts_are_told_in_pages(supervisor: Channel, count: int) -> None:
    late = LazilyOpenedImage(SPEC, cast("Any", Image()))
    serve(worker_of(supervisor), count, late)
    found = pages(supervisor)
    assert all(len(page.mounts) <= PAGE_MOUNTS for page in found)
    names = [name for page in found for name in page.mounts]
    assert names == [f"/mnt/{number:05}" for number in range(count)]
    told = {coverage for page in found for coverage in page.mounts.values()}
    assert told <= {Coverage(ready_bytes=60, total_bytes=200, cost=COST)}


def test_one_mount_is_asked_about(supervisor: Channel) -> None:
    serve(worker_of(supervisor), 500, LazilyOpenedImage(SPEC, cast("Any", Image())))
    (page,) = pages(supervisor, "/mnt/00499", "/elsewhere")
    assert list(page.mounts) == ["/mnt/00499"]


def test_nothing_is_opened_to_answer(supervisor: Channel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LazilyOpenedImage, "get", lambda _: pytest.fail("an idle image is opened"))
    serve(worker_of(supervisor), 3, LazilyOpenedImage(SPEC))
    (page,) = pages(supervisor)
    assert set(page.mounts.values()) == {Coverage(ready_bytes=None, total_bytes=None)}


def test_no_source_is_waited_for_to_answer(supervisor: Channel) -> None:
    image = Image()
    image.blobs.at_hand_count = 1
    serve(worker_of(supervisor), 1, LazilyOpenedImage(SPEC, cast("Any", image)))
    (page,) = pages(supervisor)
    told = Coverage(ready_bytes=None, total_bytes=None, cost=COST)
    assert set(page.mounts.values()) == {told}


# Images that mounts share.


@pytest.fixture
def images(monkeypatch: pytest.MonkeyPatch) -> list[Image]:
    """What is opened, one after the other."""
    opened: list[Image] = []

    def open_spec(_spec: MountSpec) -> Image:
        opened.append(Image())
        return opened[-1]

    monkeypatch.setattr(shared_images, "open_spec", open_spec)
    return opened


def at(mountpoint: str, **fields: Any) -> MountSpec:
    of_image = {name: fields.pop(name) for name in list(fields) if name in OPENING}
    image = OpenRequest(reference="oci:x", store="/s", **of_image)
    return MountSpec(image=image, mountpoint=mountpoint, **({"device": "fuse"} | fields))


def test_mounts_share_an_image(images: list[Image]) -> None:
    shared = SharedImages()
    first = shared.open(at("/a", device="fuse"))
    second = shared.open(at("/b", device="fuse-blob", options=("noexec",)))
    assert first is second
    assert [image.closed for image in images] == [0, 1]
    shared.give_back(first)
    assert images[0].closed == 0
    shared.give_back(second)
    assert images[0].closed == 1
    assert shared.open(at("/a")) is not first


@pytest.mark.parametrize(
    "fields",
    [
        {"policy": "/p"},
        {"decryption_keys": ("k",)},
        {"client": ClientOptions(username="x")},
        {"complete": True},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_who_opens_it_otherwise_has_an_image_of_his_own(
    images: list[Image], fields: dict[str, Any]
) -> None:
    shared = SharedImages()
    assert shared.open(at("/a")) is not shared.open(at("/b", **fields))
    assert len(images) == 2


def test_the_device_fanotify_shares_nothing(images: list[Image]) -> None:
    shared = SharedImages()
    specs = [at(name, device="fanotify") for name in ("/a", "/b")]
    first, second = map(shared.open, specs)
    assert first is not second
    assert shared.get(specs[0]) is not shared.get(specs[0])
    for late in (first, second):
        shared.give_back(late)
    assert [image.closed for image in images] == [1, 1]


def test_a_tag_that_has_moved_is_another_image(images: list[Image]) -> None:
    shared = SharedImages()
    first = shared.open(at("/a"))
    images[0].bootstrap_path = "/another"
    second = shared.open(at("/b"))
    assert first is not second
    assert [image.closed for image in images] == [0, 0]
    shared.give_back(first)
    shared.give_back(second)
    assert [image.closed for image in images] == [1, 1]


def test_an_idle_image_is_opened_by_the_next_mount(images: list[Image]) -> None:
    shared = SharedImages()
    idle = shared.get(at("/a"))
    assert images == []
    assert shared.open(at("/b")) is idle
    assert idle.opened is cast("Any", images[0])
