"""Servers of layers for containerd, and readers of what they serve."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lamina.serve.content_cache.kept_device import take

DEADLINE_S = 240


class Cache:
    """A server, and what it has told."""

    def __init__(self, process: subprocess.Popen[str], told: dict[str, Any]) -> None:
        self.process = process
        self.files = [Path(told["folder"], layer["path"]) for layer in told["layers"]]
        self.diff_ids = [str(layer["diff_id"]) for layer in told["layers"]]


def start(work: Path, *words: str | Path) -> Cache:
    """Start a server of ``work/cache``, and wait until it serves."""
    line = [sys.executable, "-m", "lamina", "serve", "--json", "--plain-http"]
    line += ["--store", str(work / "store"), "content-cache", str(work / "cache")]
    process = subprocess.Popen([*line, *map(str, words)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        with process.stdout:
            return Cache(process, json.loads(process.stdout.readline()))
    except BaseException:
        process.kill()
        process.wait(60)
        raise


@contextmanager
def served(work: Path, *words: str | Path) -> Iterator[Cache]:
    """Serve below ``work/cache``; keeper and all is ended at the end."""
    cache = start(work, *words)
    try:
        yield cache
    finally:
        cache.process.kill()
        cache.process.wait(60)
        taken = take(str(work / "cache"))
        if taken is not None:
            taken.release()
            os.close(taken.fd)
        subprocess.run(["umount", "-l", work / "cache"], check=False, capture_output=True)


class LayerReaders:
    """Threads that read a large file again and again, each a part of it, past the page cache."""

    def __init__(self, path: Path, content: bytes, count: int = 3) -> None:
        self._content = content
        self.right = self.failed = 0
        self.wrong: list[object] = []
        self._path = path
        self._changed = threading.Condition()
        self._ended = False
        self._threads = [threading.Thread(target=self._read, args=(n,)) for n in range(count)]

    def _read(self, number: int) -> None:
        at = number * 8192
        with self._path.open("rb", buffering=0) as file:
            while not self._ended:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                try:
                    data = os.pread(file.fileno(), 8192, at)
                except OSError as error:
                    self._count(None if error.errno == errno.EIO else error)
                    time.sleep(0.01)
                else:
                    self._count(data == self._content[at : at + 8192] or (at, data[:16]))
                at = (at + 3 * 8192) % len(self._content)

    def _count(self, found: object) -> None:
        with self._changed:
            if found is None:
                self.failed += 1
            elif found is True:
                self.right += 1
            else:
                self.wrong.append(found)
            self._changed.notify_all()

    def wait(self, enough: Callable[[], bool]) -> None:
        """Return when the counts are as they are waited for, or one was wrong."""
        with self._changed:
            assert self._changed.wait_for(lambda: bool(self.wrong) or enough(), DEADLINE_S)

    def __enter__(self) -> LayerReaders:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        for thread in self._threads:
            thread.join()
        assert self.wrong == []
