"""The records of snapshots: in memory for whoever asks, in SQLite before anybody is told.

containerd keeps its own list of what it was told, for as long as its root folder lives, and has no
way to tell a snapshotter that lost something.  So a change is on the disk when a method returns
(``synchronous=FULL``), and :meth:`SnapshotRecords.get`, which is asked ten times a second, reads
memory alone.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self

from lamina.containerd.snapshot import (
    Kind,
    Snapshot,
    SnapshotExistsError,
    SnapshotMissingError,
    SnapshotStateError,
    TreeLayer,
    Usage,
    check_labels,
)
from lamina.errors import StoreError, UsageError

VERSION: Final = 1

# AUTOINCREMENT: the number of what was removed, and may be on the disk still, never comes again.
_TABLES: Final = """
CREATE TABLE snapshots (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE,
    parent TEXT NOT NULL,       -- a name, or empty
    kind TEXT NOT NULL,         -- view, active or committed
    labels TEXT NOT NULL,       -- a JSON object
    created_ns INTEGER NOT NULL,
    updated_ns INTEGER NOT NULL,
    size_bytes INTEGER,         -- of what is committed, once somebody asked
    inodes INTEGER,
    tree INTEGER,               -- of a lazy one: the image, and how many layers of it are below
    layer INTEGER,
    whole INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE trees (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    image TEXT NOT NULL,        -- JSON, see lamina.containerd.lazy_image
    UNIQUE (image)
);
"""
_COLUMNS: Final = (
    "number, name, parent, kind, labels, created_ns, updated_ns, size_bytes, inodes, tree, layer, "
    "whole"
)


class NewSnapshot(NamedTuple):
    """What a snapshot is made from."""

    name: str
    parent: str
    kind: Kind
    labels: Mapping[str, str]
    lazy: TreeLayer | None = None


class SnapshotRecords:
    """The snapshots and trees below one root folder.  Threads share it; processes do not."""

    def __init__(self, path: Path, patience_s: float = 5.0) -> None:
        """Open the database, made if it is not there.

        Raises StoreError if another process has it for longer than ``patience_s``, or it is of a
        later version.
        """
        self._lock = threading.RLock()
        self._by_name: dict[str, Snapshot] = {}
        self._children: dict[str, int] = {}
        self._trees: dict[int, str] = {}
        self._claims: dict[int, int] = {}
        with _database_errors(path):
            self._database = sqlite3.connect(
                path, patience_s, isolation_level=None, check_same_thread=False
            )
        try:
            self._begin(path)
        except BaseException:
            self._database.close()
            raise

    def _begin(self, path: Path) -> None:
        with _database_errors(path):
            # One process alone: the index of the log is in its memory, and not in a shared file.
            self._database.execute("PRAGMA locking_mode=EXCLUSIVE")
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=FULL")
            (version,) = self._database.execute("PRAGMA user_version").fetchone()
            if version > VERSION:
                raise StoreError(
                    f"{path} was written by a newer lamina", hint="install that one, or newer"
                )
            if version == 0:
                script = f"BEGIN IMMEDIATE; {_TABLES} PRAGMA user_version={VERSION}; COMMIT;"
                self._database.executescript(script)
            for row in self._database.execute(f"SELECT {_COLUMNS} FROM snapshots"):  # noqa: S608
                self._remember(_from_row(row))
            self._trees.update(self._database.execute("SELECT number, image FROM trees"))

    def get(self, name: str) -> Snapshot:
        """Return a snapshot.  Raises SnapshotMissingError; touches no disk."""
        found = self._by_name.get(name)
        if found is None:
            raise SnapshotMissingError(f"snapshot {name} does not exist")
        return found

    def find(self, name: str) -> Snapshot | None:
        """Return a snapshot, None if there is none of that name."""
        return self._by_name.get(name)

    def all(self) -> list[Snapshot]:
        """Return all snapshots, those that were made or named last first."""
        with self._lock:
            found = list(self._by_name.values())
        return sorted(found, key=lambda each: (each.updated_ns, each.number), reverse=True)

    def add(self, new: NewSnapshot, prepare: Callable[[int], None]) -> Snapshot:
        """Record a new snapshot, of whose number ``prepare`` makes the folder before that.

        Raises UsageError for a parent that is not committed or a malformed label,
        SnapshotMissingError for one that is not there, SnapshotExistsError, and what ``prepare``
        raises.
        """
        check_labels(new.labels)
        with self._lock:
            if not new.name:
                raise UsageError("a snapshot needs a name")
            if new.name in self._by_name:
                raise SnapshotExistsError(f"snapshot {new.name} already exists")
            if new.parent and self.get(new.parent).kind is not Kind.COMMITTED:
                raise UsageError(f"parent {new.parent} is not a committed snapshot")
            now, tree = time.time_ns(), new.lazy or (None, None)
            fields = (new.name, new.parent, str(new.kind), _json(new.labels), now, now, *tree)
            with self._change():
                cursor = self._database.execute(
                    "INSERT INTO snapshots (name, parent, kind, labels, created_ns, updated_ns, "
                    "tree, layer) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    fields,
                )
                assert cursor.lastrowid is not None
                made = Snapshot(
                    cursor.lastrowid,
                    new.name,
                    new.parent,
                    new.kind,
                    dict(new.labels),
                    now,
                    now,
                    lazy=new.lazy,
                )
                prepare(made.number)
            self._remember(made)
            return made

    def commit(self, name: str, key: str, labels: Mapping[str, str]) -> Snapshot:
        """Make an active snapshot a committed one of another name, with these labels alone.

        Raises SnapshotMissingError, SnapshotExistsError, and SnapshotStateError for what is not
        active.
        """
        check_labels(labels)
        with self._lock:
            active = self.get(key)
            if not name:
                raise UsageError("a snapshot needs a name")
            if name in self._by_name:
                raise SnapshotExistsError(f"snapshot {name} already exists")
            if active.kind is not Kind.ACTIVE:
                raise SnapshotStateError(f"snapshot {key} is not active")
            now = time.time_ns()
            done = active._replace(
                name=name, kind=Kind.COMMITTED, labels=dict(labels), created_ns=now, updated_ns=now
            )
            self._replace(active, done)
            return done

    def update(
        self, name: str, change: Callable[[Mapping[str, str]], Mapping[str, str]]
    ) -> Snapshot:
        """Give a snapshot the labels that ``change`` makes of its own; empty ones go.

        Raises SnapshotMissingError, UsageError.
        """
        with self._lock:
            old = self.get(name)
            labels = {key: value for key, value in change(old.labels).items() if value}
            check_labels(labels)
            new = old._replace(labels=labels, updated_ns=time.time_ns())
            self._replace(old, new)
            return new

    def touch(self, name: str) -> None:
        """Put a snapshot first in the order of :meth:`all`.  Raises SnapshotMissingError."""
        self.update(name, lambda labels: labels)

    def note_usage(self, snapshot: Snapshot, usage: Usage) -> None:
        """Keep what a committed snapshot takes, unless it is gone."""
        with self._lock:
            if (current := self._same(snapshot)) is not None:
                self._replace(current, current._replace(usage=usage))

    def note_whole(self, snapshot: Snapshot) -> Snapshot:
        """Record that the folder of a lazy snapshot has all files of it and of its parents."""
        with self._lock:
            current = self.get(snapshot.name)
            whole = current._replace(whole=True, usage=None)
            self._replace(current, whole)
            return whole

    def remove(self, name: str) -> None:
        """Forget a snapshot; its folder stays.  Nothing happens if there is none.

        Raises SnapshotStateError if it has children.
        """
        with self._lock:
            found = self._by_name.get(name)
            if found is None:
                return
            if self._children.get(name):
                raise SnapshotStateError(f"cannot remove snapshot {name}: it has children")
            with self._change():
                self._database.execute("DELETE FROM snapshots WHERE number=?", (found.number,))
            del self._by_name[name]
            if found.parent:
                self._children[found.parent] -= 1

    @contextlib.contextmanager
    def claimed_tree(self, image: str) -> Iterator[int]:
        """Yield the number of the tree of an image, a new one if it has none; it stays meanwhile
        though no snapshot is of it yet.
        """
        with self._lock:
            number = next((each for each, known in self._trees.items() if known == image), None)
            if number is None:
                with self._change():
                    insert = "INSERT INTO trees (image) VALUES (?)"
                    number = self._database.execute(insert, (image,)).lastrowid
                assert number is not None
                self._trees[number] = image
            self._claims[number] = self._claims.get(number, 0) + 1
        try:
            yield number
        finally:
            with self._lock:
                self._claims[number] -= 1

    def tree(self, number: int) -> str:
        """Return the image of a tree."""
        return self._trees[number]

    def trees(self) -> dict[int, str]:
        """Return the images of all trees by their numbers."""
        with self._lock:
            return dict(self._trees)

    def forget_unused_trees(self) -> None:
        """Forget the trees that no snapshot is of, and nobody claims."""
        with self._lock:
            used = {each.lazy.tree for each in self._by_name.values() if each.lazy is not None}
            used |= {number for number, count in self._claims.items() if count}
            for number in self._trees.keys() - used:
                with self._change():
                    self._database.execute("DELETE FROM trees WHERE number=?", (number,))
                del self._trees[number]
                self._claims.pop(number, None)

    def numbers(self) -> set[int]:
        """Return the numbers of all snapshots."""
        with self._lock:
            return {each.number for each in self._by_name.values()}

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Let nothing be added or changed meanwhile."""
        with self._lock:
            yield

    def close(self) -> None:
        """Close the database; may be called again."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _remember(self, snapshot: Snapshot) -> None:
        self._by_name[snapshot.name] = snapshot
        if snapshot.parent:
            self._children[snapshot.parent] = self._children.get(snapshot.parent, 0) + 1

    def _same(self, snapshot: Snapshot) -> Snapshot | None:
        found = self._by_name.get(snapshot.name)
        return found if found is not None and found.number == snapshot.number else None

    def _replace(self, old: Snapshot, new: Snapshot) -> None:
        usage = new.usage or (None, None)
        fields = (new.name, str(new.kind), _json(new.labels), new.created_ns, new.updated_ns)
        with self._change():
            self._database.execute(
                "UPDATE snapshots SET name=?, kind=?, labels=?, created_ns=?, updated_ns=?, "
                "size_bytes=?, inodes=?, whole=? WHERE number=?",
                (*fields, *usage, new.whole, new.number),
            )
        del self._by_name[old.name]
        self._by_name[new.name] = new

    @contextlib.contextmanager
    def _change(self) -> Iterator[None]:
        with _database_errors(None):
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._database.execute("COMMIT")
            except BaseException:
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                raise


@contextlib.contextmanager
def _database_errors(path: Path | None) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        what = "the records of the snapshots" if path is None else str(path)
        raise StoreError(
            f"cannot use {what}: {error}",
            hint="one snapshotter uses a root folder, and its disk must have room",
        ) from error


def _json(labels: Mapping[str, str]) -> str:
    return json.dumps(dict(labels))


def _from_row(row: tuple[object, ...]) -> Snapshot:
    number, name, parent, kind, labels, created, updated, size, inodes, tree, layer, whole = row
    return Snapshot(
        number,  # type: ignore[arg-type]
        str(name),
        str(parent),
        Kind(str(kind)),
        json.loads(str(labels)),
        created,  # type: ignore[arg-type]
        updated,  # type: ignore[arg-type]
        None if size is None else Usage(size, inodes),  # type: ignore[arg-type]
        None if tree is None else TreeLayer(tree, layer),  # type: ignore[arg-type]
        bool(whole),
    )
