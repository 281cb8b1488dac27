"""Mounts of one image that share a superblock, and so the pages that the kernel keeps of its files.

What the kernel has read of a file belongs to a superblock: two of the same image keep everything
twice.  So only the first mount of an image makes one; the others are further mounts of it, each
with its own options and life.  Who mounts finds the first by a file, which says where mounts were
made that can be shared; whether they still are is seen by looking, by the numbers that mounts have
from Linux 6.8 on: ``st_dev`` comes again with other file systems.  Before, nothing is shared::

    RUNTIME/shared/KEY.json    the folders of the mounts, the latest last
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from typing import Final

import msgspec

from lamina.errors import Error
from lamina.linux import mount
from lamina.linux.mount_table import device_number, unique_mount_id
from lamina.linux.superblock import superblock_folder
from lamina.posix.write import write_all
from lamina.serve.mount_job import MountJob, Placed, closing
from lamina.serve.mount_records import MountRecord, MountRecords
from lamina.serve.runtime_folder import state_directory
from lamina.store.files import replacing

MOST: Final = 64
"""How many folders are remembered."""
_LARGEST_LIST: Final = 1 << 20


def sharing_key(job: MountJob) -> str:
    """Return the same text for mounts that may share a superblock: of the same metadata by the same
    device, opened with the same trust and keys.
    """
    spec = job.spec.pinned_to(job.opened.pinned)
    if job.opened.pinned is not None:
        # What was asked for has become the digest; another name may have led there.
        # What is fetched before it is read does not matter to who shares pages.
        image = msgspec.structs.replace(spec.image, reference="", start=None)
        spec = msgspec.structs.replace(spec, image=image)
    how = [spec.device, spec.as_lower, job.opened.digest or job.opened.bootstrap]
    return hashlib.sha256(spec.opening_key() + json.dumps(how).encode()).hexdigest()


def place_beside(job: MountJob) -> Iterator[MountRecord]:
    """Mount a superblock that is mounted already, and yield the record of its mount; go on for
    another try.  Yields nothing where there is none, and for those who are not root.
    """
    if os.geteuid() != 0:
        return
    for record in _candidates(sharing_key(job)):
        with contextlib.suppress(OSError, Error):
            job.placed = _place(job, record)
        if job.placed is not None:
            yield record
            return


def _place(job: MountJob, record: MountRecord) -> Placed | None:
    folder = os.open(record.mountpoint, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    with closing(folder):
        if not record.mount_id or unique_mount_id(folder) != record.mount_id:
            return None
        clone = mount.clone_mount(folder, job.attributes)
    with closing(clone):
        watch: tuple[str, ...] = ()
        with contextlib.suppress(OSError):
            watch = (superblock_folder(clone),)
        number = device_number(clone)
        name = f"{os.major(number)}:{os.minor(number)}"
        placed = Placed(name, unique_mount_id(clone), watch)
        # Before the mount, which would be nobody's to see if this process is killed behind it.
        MountRecords().write(job.record_of(placed))
        mount.attach_mount(clone, job.spec.mountpoint)
        return placed


def _candidates(key: str) -> Iterator[MountRecord]:
    records = MountRecords()
    for mountpoint in reversed(_read(key)):
        record = records.read(mountpoint)
        if record is not None and record.sharing == key:
            yield record


def note_sharable(record: MountRecord) -> None:
    """Let later mounts share the superblock of this one."""
    path = state_directory() / "shared" / f"{record.sharing}.json"
    known = [each for each in _read(record.sharing) if each != record.mountpoint]
    # Without it the next one has pages of its own, which is no error.
    with contextlib.suppress(OSError):
        path.parent.mkdir(mode=0o700, exist_ok=True)
        with replacing(path) as fd:
            write_all(fd, json.dumps([*known, record.mountpoint][-MOST:]).encode(), 0)


def _read(key: str) -> list[str]:
    try:
        with (state_directory() / "shared" / f"{key}.json").open() as file:
            return msgspec.convert(json.loads(file.read(_LARGEST_LIST)), list[str])
    except (OSError, ValueError, RecursionError, msgspec.ValidationError):
        return []
