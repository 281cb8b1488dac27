"""Keeps what comes by while a blob is read whole: its pieces are verified and go to the store.

Whoever asked first needed a few of them, but all are moved, and a source that sends blobs only
whole (:mod:`lamina.source.sequential_reads`) had better not be asked for them again.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Final

from lamina.content.lazy_blob import LazyBlob
from lamina.errors import Error, KernelError
from lamina.posix.threads import start_thread
from lamina.source.retry import DeadlineError

LOG: Final = logging.getLogger("lamina")

STEP_BYTES: Final = 1 << 20


def ensure_patiently(blob: LazyBlob, offset: int, size: int, *, background: bool = False) -> None:
    """Make a range ready, however long that takes while a pass over the blob goes on.

    Raises what :meth:`~lamina.content.lazy_blob.LazyBlob.ensure` does.
    """
    while True:
        underway = blob.source.sequential_reads.underway(blob.blob_id)
        try:
            return blob.ensure(offset, size, background=background)
        except DeadlineError:
            if not underway:
                raise


class PassKeeper:
    """Follows the passes over the blobs of an image, a thread for each."""

    def __init__(self, find: Callable[[str], LazyBlob | None]) -> None:
        """*find* opens a blob by its id; None if the image has no such blob."""
        self._find = find
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._closed = False

    def begin(self, blob_id: str) -> None:
        """Follow the pass that has begun over a blob; returns at once."""
        with self._lock:
            if self._closed:
                return
            self._threads = [each for each in self._threads if each.is_alive()]
            try:
                self._threads.append(start_thread(lambda: self._run(blob_id), "lamina-keep"))
            except KernelError as error:
                LOG.debug("what comes by of blob %s is not kept: %s", blob_id, error)

    def close(self) -> None:
        """Return when no thread is at work; the passes were ended before.  May be called again."""
        with self._lock:
            self._closed = True
        for thread in self._threads:
            thread.join()

    def _run(self, blob_id: str) -> None:
        try:
            blob = self._find(blob_id)
            if blob is not None:
                self._keep(blob)
        except Error as error:
            LOG.debug("what came by of blob %s is not kept: %s", blob_id, error)
        except Exception:
            LOG.exception("keeping what came by ended because of a defect")

    def _keep(self, blob: LazyBlob) -> None:
        for offset in range(0, blob.size_bytes, STEP_BYTES):
            # Who reads knows best what is worth a place that others would have to leave.
            if self._closed or not blob.cache.space.has_room(STEP_BYTES):
                return
            ensure_patiently(blob, offset, STEP_BYTES, background=True)
        if blob.complete:
            blob.source.sequential_reads.forget(blob.blob_id)
