"""Where fanotify events are noted from the moment that they are read: memory that outlives workers.

The kernel writes an event straight into a slot, so there is no moment when it is read and not
noted.  64 bytes a slot:

====== ==== ==================================================================================
offset size field
====== ==== ==================================================================================
0      48   the event as read(2) gave it; its first u32, the length, is 0 in a slot that is free
48     4    number of the blob + 1; 0 if the worker had no time to find out
52     12   zeros
====== ==== ==================================================================================
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator
from contextlib import suppress
from typing import Final, NamedTuple

from lamina.linux.fanotify import EVENT_BYTES, Event, encode_event, parse_events

SLOTS: Final = 1024
SLOT_BYTES: Final = 64
_LENGTH = struct.Struct("=I")
_BLOB = struct.Struct("=I")


class NotedEvent(NamedTuple):
    """An event in a slot; ``blob`` is None if it is not known."""

    slot: int
    event: Event
    blob: int | None


def create_slots() -> int:
    """Return the descriptor of new, free slots."""
    fd = os.memfd_create("lamina-events", os.MFD_CLOEXEC)
    os.ftruncate(fd, SLOTS * SLOT_BYTES)
    return fd


class EventSlots:
    """The slots behind a descriptor, which stays the caller's.  One thread uses it."""

    def __init__(self, fd: int) -> None:
        self._map = mmap.mmap(fd, SLOTS * SLOT_BYTES)
        self._view = memoryview(self._map)
        # Touched now: the kernel must not have to wait for a page when it hands out an event.
        for slot in range(SLOTS):
            position = slot * SLOT_BYTES
            self._view[position + SLOT_BYTES - 1] = 0

    def target(self, slot: int) -> memoryview:
        """Return where to read an event to."""
        return self._view[slot * SLOT_BYTES : slot * SLOT_BYTES + EVENT_BYTES]

    def event(self, slot: int) -> Event:
        """Return the event that was read to a slot.  Raises KernelError if it is none."""
        return next(parse_events(bytes(self.target(slot))))

    def put(self, slot: int, event: Event) -> None:
        """Note an event that was read elsewhere."""
        self.target(slot)[:] = encode_event(event)

    def note_blob(self, slot: int, blob: int) -> None:
        """Tell which blob the event of a slot is about."""
        _BLOB.pack_into(self._view, slot * SLOT_BYTES + EVENT_BYTES, blob + 1)

    def free(self, slot: int) -> None:
        """Forget the event, which is answered."""
        _LENGTH.pack_into(self._view, slot * SLOT_BYTES, 0)
        _BLOB.pack_into(self._view, slot * SLOT_BYTES + EVENT_BYTES, 0)

    def noted(self) -> Iterator[NotedEvent]:
        """Yield what is not free."""
        for slot in range(SLOTS):
            position = slot * SLOT_BYTES
            if _LENGTH.unpack_from(self._view, position)[0]:
                blob = _BLOB.unpack_from(self._view, position + EVENT_BYTES)[0]
                yield NotedEvent(slot, self.event(slot), blob - 1 if blob else None)

    def close(self) -> None:
        """Unmap."""
        self._view.release()
        # The traceback of an error may still have a view: the memory goes with that.
        with suppress(BufferError):
            self._map.close()


def noted_numbers(fd: int) -> set[int]:
    """Return the numbers of the events in the slots behind a descriptor, which wait for answers."""
    slots = EventSlots(fd)
    numbers = {noted.event.fd for noted in slots.noted()}
    slots.close()
    return numbers
