"""The memory in which events outlive the worker that has read them: bytes, and what they mean."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator

import pytest

from lamina.errors import KernelError
from lamina.linux.fanotify import Event, encode_event
from lamina.serve.service.event_slots import SLOT_BYTES, SLOTS, EventSlots, create_slots

EVENT = Event(1 << 20, 77, 4321, 1 << 40, 16384)
# Section "Where fanotify events are noted": the event, the blob + 1, zeros.
NOTED = encode_event(EVENT)
BLOB_OFFSET = 48


@pytest.fixture
def memory() -> Iterator[int]:
    fd = create_slots()
    yield fd
    os.close(fd)


@pytest.fixture
def slots(memory: int) -> Iterator[EventSlots]:
    slots = EventSlots(memory)
    yield slots
    slots.close()


def raw(memory: int, slot: int) -> bytes:
    return os.pread(memory, SLOT_BYTES, slot * SLOT_BYTES)


def test_new_slots_are_free(memory: int, slots: EventSlots) -> None:
    assert os.fstat(memory).st_size == SLOTS * SLOT_BYTES == 65536
    assert os.pread(memory, 1 << 20, 0) == bytes(65536)
    assert list(slots.noted()) == []


@pytest.mark.parametrize("slot", [0, 1, SLOTS - 1])
@pytest.mark.parametrize("blob", [0, 1, 2, 253])
def test_the_bytes_of_a_slot(memory: int, slots: EventSlots, slot: int, blob: int) -> None:
    slots.target(slot)[:] = NOTED
    assert raw(memory, slot) == NOTED + bytes(16)
    slots.note_blob(slot, blob)
    assert raw(memory, slot) == NOTED + struct.pack("=I", blob + 1) + bytes(12)
    others = [number for number in range(SLOTS) if any(raw(memory, number))]
    assert others == [slot]


def test_an_event_is_read_into_exactly_its_slot(memory: int, slots: EventSlots) -> None:
    """As the kernel does it, which writes as much as it is offered."""
    read_end, write_end = os.pipe()
    os.write(write_end, b"\xff" * 1000)
    assert os.readv(read_end, [slots.target(5)]) == len(NOTED)
    assert raw(memory, 5) == b"\xff" * len(NOTED) + bytes(16)
    assert raw(memory, 4) == raw(memory, 6) == bytes(SLOT_BYTES)
    os.close(read_end)
    os.close(write_end)


@pytest.mark.parametrize("blob", [0, 1, 2, 253])
def test_another_worker_finds_the_blob(memory: int, slots: EventSlots, blob: int) -> None:
    slots.target(3)[:] = NOTED
    slots.note_blob(3, blob)
    slots.target(9)[:] = encode_event(EVENT._replace(fd=78, offset=4096))
    heir = EventSlots(memory)
    first, second = heir.noted()
    assert first == (3, EVENT, blob)
    assert second == (9, EVENT._replace(fd=78, offset=4096), None), "nobody had told of its blob"
    heir.close()


def test_it_outlives_the_process_that_noted_it(memory: int) -> None:
    pid = os.fork()
    if pid == 0:
        slots = EventSlots(memory)
        slots.put(0, EVENT)
        slots.note_blob(0, 2)
        os._exit(0)
    os.waitpid(pid, 0)
    heir = EventSlots(memory)
    assert list(heir.noted()) == [(0, EVENT, 2)]
    heir.close()


def test_a_slot_that_is_free_knows_no_blob(memory: int, slots: EventSlots) -> None:
    """Else the next event in it would be taken for one of that blob."""
    slots.put(7, EVENT)
    slots.note_blob(7, 1)
    slots.free(7)
    assert list(slots.noted()) == []
    slots.put(7, EVENT)
    assert list(slots.noted()) == [(7, EVENT, None)]


def test_what_is_no_event(slots: EventSlots) -> None:
    slots.target(0)[:] = b"\xff" * len(NOTED)
    with pytest.raises(KernelError):
        list(slots.noted())


def test_closing_with_a_view_in_use(memory: int) -> None:
    """The traceback of an error in a read may have one."""
    slots = EventSlots(memory)
    view = slots.target(0)
    slots.close()
    view[:] = NOTED
    assert bytes(view) == NOTED
