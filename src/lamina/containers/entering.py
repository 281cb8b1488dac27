"""``lamina exec``: another command in a container that runs."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass
from typing import Any

from lamina.containers.places import Container
from lamina.containers.runtime_state import PAUSED, RUNNING, runtime_state
from lamina.errors import NotFoundError, UsageError
from lamina.linux.openat2 import open_file_below
from lamina.serve.container_user import MAX_FILE_BYTES, resolve_in
from lamina.serve.runtime import Outcome, run_words


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecOptions:
    """How the command runs; None is as the container's first one."""

    command: tuple[str, ...]
    env: tuple[tuple[str, str], ...] = ()
    workdir: str | None = None
    user: str | None = None
    terminal: bool = False
    interactive: bool = False
    detached: bool = False


def enter(container: Container, options: ExecOptions) -> Outcome:
    """Run a command in a container to its end, or leave it there; return how it ended.

    Raises NotFoundError if the container does not run, or has no such user; UsageError.
    """
    record = container.record
    state = runtime_state(record.runtime, container.name)
    if state.status == PAUSED:
        raise UsageError(
            f"the container {container.name!r} is paused",
            hint=f"{record.program} --root {record.state_root} resume {container.name}",
        )
    if state.status != RUNNING:
        raise NotFoundError(
            f"the container {container.name!r} does not run", hint="`lamina ps` lists those that do"
        )
    try:
        with open(os.path.join(container.bundle, "config.json"), "rb") as file:
            first = json.load(file)["process"]
        place = tempfile.TemporaryDirectory(dir=container.bundle, prefix="exec-")
    except FileNotFoundError as error:
        raise NotFoundError(f"the container {container.name!r} has ended") from error
    with place as folder:
        process = process_document(first, options, state.pid)
        path = os.path.join(folder, "process.json")
        with open(path, "w") as file:
            json.dump(process, file)
        log = os.path.join(folder, "runtime.log")
        words = ["exec", *(["--detach"] if options.detached else []), "--process", path]
        return run_words(
            record.runtime.command(log, *words, container.name),
            log,
            interactive=options.interactive or options.terminal,
            silent=options.detached,
        )


def process_document(first: dict[str, Any], options: ExecOptions, pid: int) -> dict[str, Any]:
    """Return the process of the OCI runtime specification, made of the container's first one."""
    variables = dict(entry.partition("=")[::2] for entry in first["env"])
    if options.terminal:
        variables["TERM"] = "xterm"
    document = {**first, "args": list(options.command), "terminal": options.terminal}
    if options.workdir is not None:
        if not options.workdir.startswith("/"):
            raise UsageError(f"the working directory {options.workdir!r} is not absolute")
        document["cwd"] = options.workdir
    if options.user is not None:
        user = resolve_in(lambda path: _file_of(pid, path), options.user)
        groups = [user.gid, *(gid for gid in user.groups if gid != user.gid)]
        document["user"] = {
            **first["user"],
            "uid": user.uid,
            "gid": user.gid,
            "additionalGids": groups,
        }
        allowed = first["capabilities"]["bounding"] if user.uid == 0 else []
        document["capabilities"] = {
            **first["capabilities"],
            "effective": allowed,
            "permitted": allowed,
        }
        variables["HOME"] = user.home
    variables.update(options.env)
    document["env"] = [f"{name}={value}" for name, value in variables.items()]
    return document


def _file_of(pid: int, path: str) -> bytes:
    """Return a small file of a container, where links lead nowhere; empty for what is no file."""
    try:
        root = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise NotFoundError("the container has ended") from error
    try:
        fd = open_file_below(root, path.lstrip("/"))
    finally:
        os.close(root)
    if fd < 0:
        return b""
    with open(fd, "rb") as file:
        return file.read(MAX_FILE_BYTES)
