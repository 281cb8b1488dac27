"""``lamina run`` without ``-d``: a container that others can list, enter and stop meanwhile."""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING

from lamina.containers.claim import Claim
from lamina.containers.record import ContainerRecord, record_of, write_record
from lamina.serve.container_folders import ContainerFolders
from lamina.serve.run import (
    Planner,
    RunRequest,
    RunResult,
    check_terminal,
    prepared_container,
    run_prepared,
)

if TYPE_CHECKING:
    from lamina.opening.open_image import Indexer


def run_container(
    request: RunRequest, *, indexer: Indexer | None = None, planner: Planner | None = None
) -> RunResult:
    """Run a container in the foreground until it ends.

    Needs what :func:`lamina.serve.run.prepared_container` does.  Raises lamina.errors.Error if the
    command was not started for a reason of ours; what the runtime itself refuses is in the exit
    code (125-127), and the runtime has told it on standard error.
    """
    check_terminal(request.options)
    folder_fd, code = -1, 125
    claim: Claim | None = None
    record: ContainerRecord | None = None

    def made(folders: ContainerFolders) -> None:
        nonlocal folder_fd, claim
        claim = Claim(folders.bundle, folders.changes)
        folder_fd = os.open(folders.changes, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    try:
        with prepared_container(request, indexer=indexer, planner=planner, made=made) as prepared:
            record = record_of(prepared, request, detached=False)
            write_record(folder_fd, record)
            code = run_prepared(prepared).exit_code
        if prepared.changes is not None:
            write_record(folder_fd, record.ended(code, time.time()))
    finally:
        if claim is not None:
            claim.end(code)
        if folder_fd >= 0:
            with contextlib.suppress(OSError):
                os.close(folder_fd)
    return RunResult(code, prepared.changes)
