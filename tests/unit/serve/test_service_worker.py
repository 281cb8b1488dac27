from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from lamina.errors import StoreError
from lamina.serve.service.channel import Channel
from lamina.serve.service.state import ServiceState
from lamina.serve.service.worker import Worker


class FullDisk:
    """A blob whose hold cannot be recorded."""

    def hold_through(self, _watch: object) -> None:
        raise StoreError("the disk is full")


def test_a_hold_of_an_image_that_another_worker_opened() -> None:
    ours, theirs = Channel.pair()
    worker = Worker(theirs, cast("ServiceState", SimpleNamespace(mounts={})))
    worker._hold({"op": "held", "number": "1", "watch": []})
    ours.settimeout(5)
    answer = ours.receive()
    assert answer is not None
    assert answer.body["op"] == "failed"
    ours.close()
    theirs.close()


def test_a_hold_that_fails_is_answered() -> None:
    """The client waits for it without a limit."""
    ours, theirs = Channel.pair()
    worker = Worker(theirs, cast("ServiceState", SimpleNamespace(mounts={})))
    worker._opened["1"] = cast("Any", SimpleNamespace(blobs=[FullDisk()]))
    worker._hold({"op": "held", "number": "1", "watch": []})
    ours.settimeout(5)
    answer = ours.receive()
    assert answer is not None
    assert answer.body["op"] == "failed"
    assert "the disk is full" in answer.body["error"]
    ours.close()
    theirs.close()
