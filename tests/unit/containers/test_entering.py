"""What another command in a container is like."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from lamina.containers.entering import ExecOptions, process_document
from lamina.errors import NotFoundError, UsageError

FIRST: dict[str, Any] = {
    "args": ["server"],
    "env": ["PATH=/bin", "A=1", "HOME=/root"],
    "cwd": "/srv",
    "terminal": False,
    "user": {"uid": 0, "gid": 0, "additionalGids": [0], "umask": 18},
    "capabilities": {
        "bounding": ["CAP_KILL"],
        "effective": ["CAP_KILL"],
        "permitted": ["CAP_KILL"],
    },
    "noNewPrivileges": True,
}


def test_it_is_as_the_first_one() -> None:
    found = process_document(FIRST, ExecOptions(command=("ls", "-l")), os.getpid())
    assert found == {**FIRST, "args": ["ls", "-l"]}


def test_what_is_given_is_different() -> None:
    options = ExecOptions(
        command=("ls",), env=(("A", "2"), ("B", "3")), workdir="/tmp", user="4444:8", terminal=True
    )
    found = process_document(FIRST, options, os.getpid())
    assert found["env"] == ["PATH=/bin", "A=2", "HOME=/", "TERM=xterm", "B=3"]
    assert found["cwd"] == "/tmp"
    assert found["user"] == {"uid": 4444, "gid": 8, "additionalGids": [8], "umask": 18}
    # Another user than root gets what execve(2) would leave of them.
    assert found["capabilities"] == {"bounding": ["CAP_KILL"], "effective": [], "permitted": []}
    assert found["terminal"] is True
    assert found["noNewPrivileges"] is True


def test_impossible_wishes() -> None:
    with pytest.raises(UsageError, match="not absolute"):
        process_document(FIRST, ExecOptions(command=("ls",), workdir="tmp"), os.getpid())
    with pytest.raises(NotFoundError, match="no user"):
        options = ExecOptions(command=("ls",), user="nobody-has-this-name")
        process_document(FIRST, options, os.getpid())


def test_a_home_that_is_given_stays() -> None:
    options = ExecOptions(command=("ls",), env=(("HOME", "/given"),), user="4444")
    assert "HOME=/given" in process_document(FIRST, options, os.getpid())["env"]


def test_a_name_of_the_caller_is_none_of_the_container(tmp_path: Path) -> None:
    # The names are those of the process's root, which is the container's.
    found = process_document(FIRST, ExecOptions(command=("ls",), user="root"), os.getpid())
    assert found["user"]["uid"] == 0
