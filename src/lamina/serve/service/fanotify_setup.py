"""A fanotify group over cache files, made by the process that mounts them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack

from lamina.linux import fanotify
from lamina.linux.mount import SuperblockWatch
from lamina.serve.quiet import quiet_descriptor
from lamina.serve.service.event_slots import EventSlots, create_slots


def set_up_group(paths: Mapping[int, str], stack: ExitStack) -> dict[str, int]:
    """Watch the cache files of some blobs; return the descriptors that serve them, by name.

    They are closed with ``stack``.  What others have read of the files meanwhile is noted in the
    slots, to be answered by who serves.  Raises KernelError, UnsupportedError.
    """
    SuperblockWatch("erofs").require()
    group = fanotify.create_group()
    stack.callback(os.close, group)
    slots_fd = create_slots()
    stack.callback(os.close, slots_fd)
    fds = {"group": group, "slots": slots_fd}
    early: list[fanotify.Event] = []
    opened = {}
    for index, path in paths.items():
        opened[index] = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        stack.callback(os.close, opened[index])
        fanotify.add_mark(group, opened[index])
    for index, fd in opened.items():
        fds[f"blob.{index}"] = quiet = quiet_descriptor(group, fd, paths[index], early)
        stack.callback(os.close, quiet)
    slots = EventSlots(slots_fd)
    for slot, event in enumerate(early):
        slots.put(slot, event)
    slots.close()
    return fds
