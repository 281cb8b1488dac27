"""Queues that are bounded in bytes: order, bounds, errors, and giving up."""

from __future__ import annotations

import threading

import pytest

from lamina.build.byte_queue import ByteGate, ByteQueue, CancelledError
from lamina.errors import StoreError


def test_blocks_come_in_order_and_are_bounded() -> None:
    queue = ByteQueue(100)
    blocks = [bytes([number]) * 30 for number in range(50)]
    most = 0

    def write() -> None:
        nonlocal most
        for block in blocks:
            queue.put(block)
            most = max(most, queue._bytes)
        queue.end()

    writer = threading.Thread(target=write)
    writer.start()
    found = list(iter(queue.get, b""))
    writer.join()
    assert found == blocks
    assert queue.get() == b""
    assert most <= 130


def test_an_error_comes_after_what_was_written() -> None:
    queue = ByteQueue(100)
    queue.put(b"a")
    queue.end(StoreError("gone"))
    assert queue.get() == b"a"
    with pytest.raises(StoreError, match="gone"):
        queue.get()


def test_whoever_waits_is_woken() -> None:
    full, empty = ByteQueue(1), ByteQueue(1)
    full.put(b"a")
    caught: list[BaseException] = []

    def wait(queue: ByteQueue) -> None:
        try:
            queue.put(b"b") if queue is full else queue.get()
        except CancelledError as error:
            caught.append(error)

    threads = [threading.Thread(target=wait, args=(queue,)) for queue in (full, empty)]
    for thread in threads:
        thread.start()
    for queue in (full, empty):
        queue.cancel()
    for thread in threads:
        thread.join()
    assert len(caught) == 2


def test_a_gate_opens_when_work_leaves() -> None:
    gate = ByteGate(10)
    gate.enter(100)
    entered = threading.Event()

    def enter() -> None:
        gate.enter(1)
        entered.set()

    thread = threading.Thread(target=enter)
    thread.start()
    gate.leave(100)
    thread.join()
    assert entered.is_set()


def test_a_closed_gate_lets_nobody_in() -> None:
    gate = ByteGate(10)
    gate.close(StoreError("full"))
    gate.close(StoreError("later"))
    with pytest.raises(StoreError, match="full"):
        gate.enter(1)
