"""The stream that brings the pages of a start, from the moment that the manifest is known.

One thread finds the artifact that is attached to the image, reads it in one request beside all that
opening the image asks for, and proves each frame as soon as the image is open.  Whatever goes wrong
ends the stream and nothing else.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, BinaryIO, Final

from lamina.blob.page_proof import PAGE_BYTES, require_numpy
from lamina.blob.start_artifact import (
    PREFIX_BYTES,
    Frame,
    Tables,
    parse_prefix,
    parse_tables,
)
from lamina.content.early_proof import EarlyChunks, is_of_bootstrap, prove_bootstrap
from lamina.content.lazy_blob import LazyBlob
from lamina.content.start_pages import StartPages
from lamina.content.start_proof import ProvenChunk, prove_frame
from lamina.erofs.partial import NotHereError
from lamina.errors import Error, FormatError, IntegrityError, UnsupportedError
from lamina.opening.find_start import FoundStart, Secret, find_start

if TYPE_CHECKING:
    from lamina.blob.seal import HiddenKey
    from lamina.content.lazy_image import LazyImage
    from lamina.oci.bootstrap_root import BootstrapRoot
    from lamina.oci.start_manifest import StartRule
    from lamina.opening.manifest import FoundManifest
    from lamina.opening.place import Place

LOG: Final = logging.getLogger("lamina")

READ_BYTES: Final = 64 << 10
SLOWEST_BYTES_PER_S: Final = 32 << 10
GRACE_S: Final = 3.0
"""Then a stream must have been as fast as that."""
CLOSE_S: Final = 5.0
"""How long closing waits for a read that hangs; the thread ends with the connection then."""


class _StoppedError(Error):
    """Nobody wants more of the stream."""


class StartStream:
    """Finds, reads and proves an artifact in a thread of its own, until it is closed."""

    def __init__(
        self, find: Callable[[Secret], FoundStart | None], root: BootstrapRoot | None = None
    ) -> None:
        """*find* is called in the thread, with what returns the image's secret once it is bound;
        *root* proves pages of the bootstrap.
        """
        self.pages = StartPages()
        self._find = find
        self._root = root
        self._metadata: dict[int, memoryview] = {}
        self._found = threading.Event()
        self._told = threading.Event()
        self._secret: HiddenKey | None = None
        self._blobs: Callable[[], Mapping[str, LazyBlob | EarlyChunks]] | None = None
        self._bound = threading.Event()
        self._closing = False
        self._only_whole = False
        self._begin = time.monotonic()
        self._received = 0
        self._waiting: list[tuple[int, Frame, bytes]] = []
        self._unkept: deque[ProvenChunk] = deque()
        self._thread = threading.Thread(target=self._run, name="lamina-start", daemon=True)
        self._thread.start()

    def bind(self, blobs: Iterable[LazyBlob], secret: HiddenKey | None = None) -> None:
        """Prove by the digests of these blobs, those of the image, from now on; *secret* is that of
        a sealed one.
        """

        def by_id() -> dict[str, LazyBlob]:
            return {blob.blob_id: blob for blob in blobs}

        self._blobs, self._secret = by_id, secret
        self._bound.set()

    def metadata(self, longest_s: float) -> dict[int, memoryview]:
        """Return the proven pages of the bootstrap, by number, when they have come; none if there
        is no artifact that has them, or none is found in *longest_s*.
        """
        if self._found.wait(longest_s):
            self.pages.wait_asked(self._told)
        return self._metadata

    def bind_early(self, blobs: Mapping[str, EarlyChunks]) -> None:
        """Prove by what came ahead of the image's own metadata, until :meth:`bind`."""
        self._blobs = lambda: blobs
        self._bound.set()

    def keep(self) -> None:
        """Put the chunks into the store that came whole before it had a place for them, so that
        they leave the memory.
        """
        if self._blobs is None or not self._unkept:
            return
        blobs = self._blobs()
        while self._unkept and not self._closing:
            chunk = self._unkept.popleft()
            if _keep(chunk, blobs[chunk.blob_id]):
                self.pages.drop(chunk.blob_id, chunk.by_page())
        self.pages.compact()

    def close(self) -> None:
        """End the stream; readers take the ordinary path from now on."""
        self._closing = True
        self.pages.end()
        self._bound.set()
        self._thread.join(CLOSE_S)

    def _run(self) -> None:
        try:
            self.pages.ask()
            found = self._find(self._wait_secret)
            self.pages.answered()
            if found is not None:
                self._found.set()
                # Loaded only for an artifact: it takes a start of no artifact a tenth of a second.
                self._only_whole = not _has_numpy()
                with found.stream:
                    self._read(found)
        except _StoppedError as error:
            LOG.debug("the start artifact is not read to its end: %s", error)
        except (FormatError, IntegrityError) as error:
            LOG.warning("the start artifact is not used any further: %s", error)
        except Error as error:
            LOG.info("the start artifact cannot be had: %s", error)
        except (OSError, ValueError) as error:
            # The connection was closed with the image.
            LOG.debug("the start artifact breaks off: %s", error)
        finally:
            self._waiting.clear()
            self.pages.end()
            self._told.set()
            self._found.set()

    def _wait_secret(self) -> HiddenKey | None:
        # Whoever opens the image does not wait for us.
        self.pages.answered()
        self._bound.wait()
        if self._closing:
            raise _StoppedError("the image is closed")
        self.pages.ask()
        return self._secret

    def _read(self, found: FoundStart) -> None:
        artifact = found.stream
        prefix = parse_prefix(self._exactly(artifact, PREFIX_BYTES))
        if prefix.manifest_digest.hex() != found.image_digest.partition(":")[2]:
            raise FormatError("the start artifact was made of another image")
        tables = parse_tables(prefix, self._exactly(artifact, prefix.stored_bytes))
        self.pages.announce(tables)
        for number, frame in enumerate(tables.frames):
            stored = self._exactly(artifact, frame.stored_bytes)
            if is_of_bootstrap(tables, frame, self._root):
                self._take_metadata(tables, number, stored)
                continue
            # Pages of the bootstrap come first.
            self._told.set()
            self._waiting.append((number, frame, stored))
            if self._bound.is_set():
                self._settle(tables)
        # What is behind the frames is none of ours, but its end has the digest's verdict.
        if artifact.read(1):
            raise FormatError("the start artifact is longer than its tables say")
        self._bound.wait()
        self._settle(tables)

    def _take_metadata(self, tables: Tables, number: int, stored: bytes) -> None:
        if not self._told.is_set() and not self._only_whole:
            assert self._root is not None
            self._metadata = prove_bootstrap(tables, tables.frames[number], stored, self._root)
        self.pages.settle(number, {})
        self._told.set()

    def _exactly(self, artifact: BinaryIO, size_bytes: int) -> bytes:
        data = bytearray()
        while len(data) < size_bytes:
            self._check_worth()
            self.pages.ask()
            part = artifact.read(min(READ_BYTES, size_bytes - len(data)))
            self.pages.answered()
            if not part:
                raise FormatError("the start artifact is shorter than it says")
            data += part
            self._received += len(part)
        return bytes(data)

    def _check_worth(self) -> None:
        if self._closing:
            raise _StoppedError("the image is closed")
        if self.pages.is_useless:
            raise _StoppedError("other pages are wanted than it has")
        elapsed_s = time.monotonic() - self._begin
        if elapsed_s > GRACE_S and self._received < elapsed_s * SLOWEST_BYTES_PER_S:
            raise _StoppedError(f"{self._received} bytes in {elapsed_s:.1f} s are too few")

    def _settle(self, tables: Tables) -> None:
        """Prove what has arrived, and give it to the readers."""
        if self._closing or self._blobs is None:
            raise _StoppedError("the image is closed")
        blobs = self._blobs()
        while self._waiting:
            number, frame, stored = self._waiting.pop(0)
            pages: dict[str, dict[int, memoryview]] = {}
            if not _is_here(tables, frame, blobs):
                for chunk in self._proven(tables, frame, stored, blobs):
                    if not _keep(chunk, blobs[chunk.blob_id]):
                        pages.setdefault(chunk.blob_id, {}).update(chunk.by_page())
                        if isinstance(blobs[chunk.blob_id], EarlyChunks) and chunk.is_whole:
                            self._unkept.append(chunk)
            self.pages.settle(number, pages)

    def _proven(
        self,
        tables: Tables,
        frame: Frame,
        stored: bytes,
        blobs: Mapping[str, LazyBlob | EarlyChunks],
    ) -> list[ProvenChunk]:
        try:
            return prove_frame(tables, frame, stored, blobs, only_whole=self._only_whole)
        except NotHereError as error:
            LOG.debug("a frame of the start artifact cannot be proven so early: %s", error)
            return []


def _has_numpy() -> bool:
    try:
        require_numpy()
    except UnsupportedError as error:
        LOG.info("%s, so only chunks that come whole are used (%s)", error, error.hint)
        return False
    return True


def _is_here(tables: Tables, frame: Frame, blobs: Mapping[str, LazyBlob | EarlyChunks]) -> bool:
    """Tell whether the node is known to have all chunks of a frame."""
    for part in frame.pages:
        blob = blobs.get(tables.blob_ids[part.owner])
        if blob is None:
            return False
        if not blob.has(part.first * PAGE_BYTES, part.pages * PAGE_BYTES):
            return False
    return True


def _keep(chunk: ProvenChunk, blob: LazyBlob | EarlyChunks) -> bool:
    """Put a chunk that came whole into the store, where it stays; False if it did not."""
    if not chunk.is_whole:
        return False
    try:
        blob.keep(chunk.chunk, chunk.first_page * PAGE_BYTES, chunk.data[: chunk.size_bytes])
    except Error as error:
        LOG.debug("a chunk of the start artifact is not kept: %s", error)
        return False
    return True


def begin_start(
    place: Place, found: FoundManifest, rule: StartRule, root: BootstrapRoot | None
) -> StartStream:
    """Begin to read the start artifact of an image, if there is one.  Close it, or bind it."""
    return StartStream(partial(find_start, place, found, rule), root)


def bind_start(stream: StartStream, image: LazyImage) -> None:
    """Let the opened image have what comes; it closes the stream."""
    image.blobs.expect(stream.pages)
    stream.bind(image.blobs, image.start_secret)
    image.close_with(stream)
