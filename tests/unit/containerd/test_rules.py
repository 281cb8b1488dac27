"""containerd's rules for snapshotters, one by one, over gRPC.

Sources: the comments of ``Snapshotter`` and ``Info`` in containerd's ``core/snapshots``, what
``core/snapshots/testsuite`` demands, and what its metadata store relies on.
"""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest

from lamina.containerd.records import SnapshotRecords
from lamina.errors import StoreError
from tests.unit.containerd.client import Client, served

Step = tuple[Any, ...]

ROOT = Path(__file__).parents[3]


class Rule(NamedTuple):
    """After ``steps``, the last of which is what it is about, ``right`` holds of its result: a
    code, or a function of it.
    """

    name: str
    steps: list[Step]
    right: str | Callable[[Any], object]


BASE: list[Step] = [("prepare", "a"), ("commit", "base", "a")]
UPPER: list[Step] = [*BASE, ("prepare", "b", "base"), ("commit", "upper", "b")]


def kind(name: str) -> Callable[[Any], bool]:
    number = {"view": 1, "active": 2, "committed": 3}[name]
    return lambda info: info.kind == number


def names(*wanted: str) -> Callable[[Any], bool]:
    return lambda infos: sorted(info.name for info in infos) == sorted(wanted)


def labels(**wanted: str) -> Callable[[Any], bool]:
    return lambda info: dict(info.labels) == wanted


def mount_type(wanted: str, *options: str) -> Callable[[Any], bool]:
    return lambda mounts: (
        len(mounts) == 1 and mounts[0].type == wanted and set(options) <= set(mounts[0].options)
    )


LABELLED: list[Step] = [("prepare", "k", "", {"a": "1", "b.c/d": "2"})]
BOTH: list[Step] = [
    *BASE,
    ("prepare", "x", "base", {"who": "x", "containerd.io/snapshot.ref": "sha256:1"}),
    ("view", "v", "base"),
]

RULES = [
    # Prepare and View
    Rule("prepare makes an active snapshot", [("prepare", "k"), ("stat", "k")], kind("active")),
    Rule("view makes a view", [("view", "k"), ("stat", "k")], kind("view")),
    Rule("a key is used once", [("prepare", "k"), ("prepare", "k")], "ALREADY_EXISTS"),
    Rule("also by a view", [("prepare", "k"), ("view", "k")], "ALREADY_EXISTS"),
    Rule("also by what is committed", [*BASE, ("prepare", "base")], "ALREADY_EXISTS"),
    Rule("a parent is there", [("prepare", "k", "nowhere")], "NOT_FOUND"),
    Rule("of a view as well", [("view", "k", "nowhere")], "NOT_FOUND"),
    Rule("a parent is committed", [("prepare", "a"), ("prepare", "k", "a")], "INVALID_ARGUMENT"),
    Rule("a view is no parent", [("view", "a"), ("view", "k", "a")], "INVALID_ARGUMENT"),
    Rule("a key is not empty", [("prepare", "")], "INVALID_ARGUMENT"),
    Rule("a parent is told", [*BASE, ("prepare", "k", "base"), ("stat", "k")],
         lambda info: info.parent == "base"),
    Rule("labels are kept", [*LABELLED, ("stat", "k")], lambda info: dict(info.labels) ==
         {"a": "1", "b.c/d": "2"}),
    Rule("a label has 4096 bytes", [("prepare", "k", "", {"a": "1" * 4095}), ("stat", "k")],
         labels(a="1" * 4095)),
    Rule("and not more", [("prepare", "k", "", {"a": "1" * 4096})], "INVALID_ARGUMENT"),
    Rule("keys are any text", [("prepare", "ns/7//a b/../c:d"), ("stat", "ns/7//a b/../c:d")],
         kind("active")),
    # Mounts
    Rule("without parents it is the folder", [("prepare", "k")], mount_type("bind", "rw")),
    Rule("a view of nothing is read-only", [("view", "k")], mount_type("bind", "ro")),
    Rule("with parents it is an overlay", [*UPPER, ("prepare", "k", "upper")],
         lambda mounts: mounts[0].type == "overlay"
         and sorted(each.partition("=")[0] for each in mounts[0].options
                    if each != "index=off") == ["lowerdir", "upperdir", "workdir"]),
    Rule("a view of one layer is that", [*BASE, ("view", "k", "base")], mount_type("bind", "ro")),
    Rule("a view of more has no upper", [*UPPER, ("view", "k", "upper")],
         lambda mounts: mounts[0].type == "overlay"
         and not any(each.startswith("upperdir") for each in mounts[0].options)),
    Rule("mounts of an unknown key", [("mounts", "k")], "NOT_FOUND"),
    Rule("mounts of what is committed", [*BASE, ("mounts", "base")], "FAILED_PRECONDITION"),
    # Commit
    Rule("commit gives another name", [*BASE, ("stat", "base")], kind("committed")),
    Rule("the key is free then", [*BASE, ("stat", "a")], "NOT_FOUND"),
    Rule("and can be used again", [*BASE, ("prepare", "a"), ("stat", "a")], kind("active")),
    Rule("a name is used once", [*BASE, ("prepare", "b"), ("commit", "base", "b")],
         "ALREADY_EXISTS"),
    Rule("a key to commit is there", [("commit", "base", "a")], "NOT_FOUND"),
    Rule("a view is not committed", [("view", "v"), ("commit", "n", "v")], "FAILED_PRECONDITION"),
    Rule("nor what is committed", [*BASE, ("commit", "n", "base")], "FAILED_PRECONDITION"),
    Rule("a name is not empty", [("prepare", "a"), ("commit", "", "a")], "INVALID_ARGUMENT"),
    Rule("labels are those of the commit", [*LABELLED, ("commit", "n", "k", {"z": "1"}),
                                            ("stat", "n")], labels(z="1")),
    # Remove
    Rule("remove", [*BASE, ("remove", "base"), ("stat", "base")], "NOT_FOUND"),
    Rule("an unknown key is removed: the collection goes on", [("remove", "k")],
         lambda nothing: nothing is None),
    Rule("a parent stays", [*UPPER, ("remove", "base")], "FAILED_PRECONDITION"),
    Rule("also one of something active", [*BASE, ("prepare", "k", "base"), ("remove", "base")],
         "FAILED_PRECONDITION"),
    Rule("children go first", [*UPPER, ("remove", "upper"), ("remove", "base"), ("list",)],
         names()),
    Rule("a child that failed is none", [*BASE, ("try", "prepare", "base", "base"),
                                         ("remove", "base"), ("list",)], names()),
    # Stat
    Rule("stat of an unknown name", [("stat", "k")], "NOT_FOUND"),
    Rule("times are there", [("prepare", "k"), ("stat", "k")],
         lambda info: info.created_at.seconds > 1_700_000_000
         and info.created_at == info.updated_at),
    # Update
    Rule("update of an unknown name", [("update", "k", {})], "NOT_FOUND"),
    Rule("all labels without a mask", [*LABELLED, ("update", "k", {"c": "3"})], labels(c="3")),
    Rule("or with it", [*LABELLED, ("update", "k", {"c": "3"}, "labels")], labels(c="3")),
    Rule("one label by its mask", [*LABELLED, ("update", "k", {"a": "9", "c": "3"}, "labels.a")],
         lambda info: dict(info.labels) == {"a": "9", "b.c/d": "2"}),
    Rule("whose key has dots", [*LABELLED, ("update", "k", {"b.c/d": "9"}, "labels.b.c/d")],
         lambda info: dict(info.labels) == {"a": "1", "b.c/d": "9"}),
    Rule("an empty one goes", [*LABELLED, ("update", "k", {}, "labels.a")],
         lambda info: dict(info.labels) == {"b.c/d": "2"}),
    Rule("nothing else is changed", [*LABELLED, ("update", "k", {}, "parent")],
         "INVALID_ARGUMENT"),
    Rule("nor beside labels", [*LABELLED, ("update", "k", {"a": "9"}, "labels.a", "kind")],
         "INVALID_ARGUMENT"),
    Rule("what is committed has labels too", [*BASE, ("update", "base", {"a": "1"})],
         labels(a="1")),
    Rule("an update is later", [*LABELLED, ("update", "k", {})],
         lambda info: info.updated_at.ToNanoseconds() > info.created_at.ToNanoseconds()),
    # List
    Rule("list tells all", [*BOTH, ("list",)], names("base", "x", "v")),
    Rule("by kind", [*BOTH, ("list", "kind==view")], names("v")),
    Rule("by parent", [*BOTH, ("list", "parent==base")], names("x", "v")),
    Rule("by no parent", [*BOTH, ("list", 'parent==""')], names("base")),
    Rule("by name", [*BOTH, ("list", "name!=base")], names("x", "v")),
    Rule("by a label", [*BOTH, ("list", "labels.who==x")], names("x")),
    Rule("by its being there", [*BOTH, ("list", "labels.who")], names("x")),
    Rule("by a quoted label", [*BOTH, ("list",
         'labels."containerd.io/snapshot.ref"==sha256:1,parent=="base"')], names("x")),
    Rule("all selectors hold", [*BOTH, ("list", "labels.who==x,kind==view")], names()),
    Rule("of filters one holds", [*BOTH, ("list", "kind==view", "name==base")],
         names("base", "v")),
    Rule("by a pattern", [*BOTH, ("list", "name~=^[bv]")], names("base", "v")),
    Rule("by a quoted pattern", [*BOTH, ("list", "name~=/^[bv]/")], names("base", "v")),
    Rule("by a field that there is not", [*BOTH, ("list", "size==1")], names()),
    Rule("no filter", [("list", "name==")], "INVALID_ARGUMENT"),
    Rule("no pattern", [("list", "name~=(")], "INVALID_ARGUMENT"),
    # Usage
    Rule("usage of an unknown name", [("usage", "k")], "NOT_FOUND"),
    Rule("usage counts the folder", [("prepare", "k"), ("usage", "k")],
         lambda usage: usage.inodes == 1),
    Rule("a view takes nothing", [("view", "k"), ("usage", "k")],
         lambda usage: (usage.size, usage.inodes) == (0, 0)),
    # Cleanup
    Rule("cleanup of nothing", [("cleanup",)], lambda nothing: nothing is None),
]  # fmt: skip


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "r"


@pytest.fixture
def client(root: Path) -> Iterator[Client]:
    with served(root) as client:
        yield client


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_rule(client: Client, rule: Rule) -> None:
    *before, (method, *arguments) = rule.steps
    for name, *others in before:
        if name == "try":
            with pytest.raises(grpc.RpcError):
                getattr(client, others[0])(*others[1:])
        else:
            getattr(client, name)(*others)
    if isinstance(rule.right, str):
        with pytest.raises(grpc.RpcError) as caught:
            getattr(client, method)(*arguments)
        assert caught.value.code().name == rule.right  # type: ignore[attr-defined]
    else:
        assert rule.right(getattr(client, method)(*arguments))


def test_the_conformance_page_names_each_rule() -> None:
    page = (ROOT / "docs/reference/conformance.md").read_text()
    section = page.partition("## Snapshots, by containerd's rules")[2].partition("\n## ")[0]
    assert sorted(re.findall('"([^"]+)"', section)) == sorted(rule.name for rule in RULES)


def folder_of(mounts: list[Any]) -> Path:
    [mount] = mounts
    if mount.type == "bind":
        return Path(mount.source)
    return Path(next(each[9:] for each in mount.options if each.startswith("upperdir=")))


def test_an_upper_folder_looks_as_overlayfs_makes_it(client: Client) -> None:
    """0755 whatever the umask, and the owner of the layer below."""
    if os.geteuid() != 0:
        pytest.skip("needs root to give files away")
    before = os.umask(0o077)
    try:
        folder = folder_of(client.prepare("a"))
        os.chown(folder, 12, 34)
        client.commit("base", "a")
        upper = folder_of(client.prepare("k", "base")).stat()
    finally:
        os.umask(before)
    assert (stat.S_IMODE(upper.st_mode), upper.st_uid, upper.st_gid) == (0o755, 12, 34)


def test_usage_is_that_of_du(client: Client) -> None:
    folder = folder_of(client.prepare("k"))
    (folder / "one").write_bytes(b"x" * 100_000)
    os.link(folder / "one", folder / "two")
    (folder / "below").mkdir()
    os.symlink("nowhere", folder / "below/link")
    wanted = sum(
        each.lstat().st_blocks * 512
        for each in (folder, folder / "one", folder / "below", folder / "below/link")
    )
    client.commit("base", "k")
    for _ in range(2):
        usage = client.usage("base")
        assert (usage.size, usage.inodes) == (wanted, 4)


def test_commit_and_remove_read_and_delete_no_tree(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one holds up all of containerd, the other all calls of its snapshotter."""
    folder = folder_of(client.prepare("k"))
    (folder / "file").write_bytes(b"content")

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("it looks at the files")

    with monkeypatch.context() as patch:
        for name in ("scandir", "listdir", "lstat", "rename", "rmdir", "unlink"):
            patch.setattr(os, name, fail)
        client.commit("base", "k")
        client.stat("base")
        client.remove("base")
    assert (folder / "file").exists()
    client.cleanup()
    assert not folder.parent.exists()


KILLED = """
import os, sys
from pathlib import Path
sys.path[:0] = ["src", "."]
from lamina.containerd.records import SnapshotRecords
from lamina.errors import StoreError
from tests.unit.containerd.client import served
with served(Path(sys.argv[1])) as client:
    client.prepare("a", "", {"l": "1"})
    client.commit("base", "a", {"m": "2"})
    client.prepare("k", "base")
    client.view("gone", "base")
    client.remove("gone")
    os.kill(os.getpid(), 9)
"""


def test_what_was_answered_is_there_after_a_kill(root: Path) -> None:
    """Nothing is flushed or closed: the next process finds what was told."""
    done = subprocess.run([sys.executable, "-c", KILLED, str(root)], cwd=ROOT, timeout=60)
    assert done.returncode == -signal.SIGKILL
    with served(root) as client:
        assert sorted(info.name for info in client.list()) == ["base", "k"]
        assert dict(client.stat("base").labels) == {"m": "2"}
        assert client.mounts("k")[0].type == "overlay"
        client.cleanup()
        assert sorted(os.listdir(root / "s")) == ["1", "2"]


def test_two_processes_do_not_share_a_root(root: Path) -> None:
    with served(root), pytest.raises(StoreError, match="cannot use"):
        SnapshotRecords(root / "snapshots.db", patience_s=0.1)
