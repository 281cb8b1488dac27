"""The chunk tables of an image that were fetched from its blobs, and are remembered with it.

Nothing proves such a table before it is used: chunks are proven, not where they are said to be.  So
one that turns out to be wrong is forgotten, and the next opening fetches another.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Final

import msgspec

from lamina.errors import Error
from lamina.store.records import IMAGE

if TYPE_CHECKING:
    from lamina.store.node import NodeStore
    from lamina.store.records import MetadataFiles

LOG: Final = logging.getLogger("lamina")


class FetchedTables:
    """Those of one opened image.  Threads share it."""

    def __init__(self, store: NodeStore, digest: str, files: MetadataFiles) -> None:
        """Begin with what is known: *files* of the manifest *digest*."""
        self._store = store
        self._digest = digest
        self._files = files
        self._lock = threading.Lock()

    def keep(self, blob_id: str, table: str) -> None:
        """Remember that a blob has the *table* with this digest, which is in the store."""
        with self._lock:
            files = self._files
            fetched = [*(each for each in files.fetched if each != blob_id), blob_id]
            self._write({**files.tables, blob_id: table}, fetched)

    def forget(self, blob_id: str, table: str) -> None:
        """Remember a *table* no longer, if it was fetched: it contradicts what its blob has.  To
        fail at that is no error.
        """
        with self._lock:
            files = self._files
            if files.tables.get(blob_id) != table or blob_id not in files.fetched:
                return
            tables = {name: each for name, each in files.tables.items() if name != blob_id}
            LOG.warning("the chunk table of blob %s is forgotten: it may be a wrong one", blob_id)
            try:
                self._write(tables, [each for each in files.fetched if each != blob_id])
            except Error as error:
                LOG.debug("the chunk table of blob %s stays: %s", blob_id, error)

    def _write(self, tables: dict[str, str], fetched: list[str]) -> None:
        files = msgspec.structs.replace(self._files, tables=tables, fetched=fetched)
        self._store.records.write(IMAGE, self._digest, files)
        self._files = files
