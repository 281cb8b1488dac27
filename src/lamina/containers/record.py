"""What is known of a container: ``STORE/containers/NAME/container.json``, beside what it wrote.

It is written when the container starts and once more at its end, and stays as long as what it wrote
does.  Words that are no UTF-8 are in it as lone surrogates.
"""

from __future__ import annotations

import json
import os
import time
from typing import Final, Self

import msgspec

from lamina.containers.signals import signal_of_image
from lamina.errors import StoreError, os_hint
from lamina.linux.process import start_time_ticks
from lamina.serve.container_options import STOP_TIMEOUT_S
from lamina.serve.run import PreparedContainer, RunRequest
from lamina.serve.runtime import Runtime

RECORD_FILE: Final = "container.json"
LOG_FILE: Final = "container.log"
MESSAGES_FILE: Final = "messages.log"
"""What Lamina itself had to say: damage that was found, a registry that was away."""

# Labels and command of an image: what 16 MiB of its configuration are in ASCII.
_MAX_BYTES: Final = 128 << 20


class ContainerRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A container; times are seconds since 1970, ``exit_code`` is None until it has ended.

    ``supervisors`` are the processes that look after it; ``server`` is the one that serves its
    image, and when that started.  ``program`` and ``state_root`` are the runtime and its folder;
    ``keeps`` is False for ``--rm``.
    """

    name: str
    image: str
    command: tuple[str, ...]
    created_s: float
    labels: dict[str, str]
    detached: bool
    keeps: bool
    stop_signal: str
    stop_timeout_s: float
    program: str
    state_root: str
    bundle: str
    finished_s: float = 0.0
    exit_code: int | None = None
    supervisors: tuple[int, ...] = ()
    server: tuple[int, int] = (0, 0)

    @property
    def runtime(self) -> Runtime:
        """The runtime that has it."""
        return Runtime(self.program, self.state_root)

    def ended(self, exit_code: int | None, now_s: float) -> Self:
        """Return the record of the same container after its end."""
        return msgspec.structs.replace(self, exit_code=exit_code, finished_s=now_s)


def record_of(
    prepared: PreparedContainer, request: RunRequest, *, detached: bool
) -> ContainerRecord:
    """Return the record of a container that is about to be started."""
    folders, facts = prepared.folders, prepared.facts
    options, server = prepared.options, prepared.server.pid
    timeout_s = options.stop_timeout_s
    return ContainerRecord(
        name=folders.container_id,
        image=request.image.reference,
        command=tuple(facts["document"]["process"]["args"]),
        created_s=time.time(),
        labels={**facts["labels"], **dict(options.labels)},
        detached=detached,
        keeps=request.keep_changes,
        stop_signal=options.stop_signal or signal_of_image(facts["stop_signal"]),
        stop_timeout_s=STOP_TIMEOUT_S if timeout_s is None else timeout_s,
        program=prepared.runtime.program,
        state_root=prepared.runtime.root,
        bundle=folders.bundle,
        supervisors=(os.getpid(),),
        server=(server, start_time_ticks(server) or 0),
    )


def write_record(folder_fd: int, record: ContainerRecord) -> None:
    """Write it into an open folder, which may be hidden by a mount.  Raises StoreError."""
    temporary = f"{RECORD_FILE}.new"
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    try:
        with open(os.open(temporary, flags, 0o600, dir_fd=folder_fd), "wb") as file:
            file.write(json.dumps(msgspec.to_builtins(record)).encode())
        os.rename(temporary, RECORD_FILE, src_dir_fd=folder_fd, dst_dir_fd=folder_fd)
    except OSError as error:
        raise StoreError(
            f"cannot write down the container {record.name!r}: {error.strerror}",
            hint=os_hint(error),
        ) from error


def read_record(folder: str) -> ContainerRecord | None:
    """Return the record in a folder, None if there is none that can be read."""
    try:
        with open(os.path.join(folder, RECORD_FILE), "rb") as file:
            return msgspec.convert(json.loads(file.read(_MAX_BYTES)), ContainerRecord)
    except (OSError, ValueError, RecursionError):
        return None
