"""Cut a zstd stream at block boundaries, so that it can be decoded with bounded output and its end
is known.

A decoder that is fed arbitrary slices may return any amount for a few bytes, and a truncated stream
looks like one that waits for more.  Both end here: every block decodes to at most 128 KiB, and the
last one of a frame says so.

Source: RFC 8878 §3.1 (frames, blocks, skippable frames).
"""

from __future__ import annotations

from lamina.errors import FormatError

MAGIC = b"\x28\xb5\x2f\xfd"
SKIPPABLE_FIRST = 0x184D2A50
SKIPPABLE_LAST = 0x184D2A5F
MAX_BLOCK_BYTES = 128 << 10
MAX_FRAME_HEADER_BYTES = 18

WINDOW_ID_BYTES = (0, 1, 2, 4)
CONTENT_SIZE_BYTES = (0, 2, 4, 8)
RLE_BLOCK, RESERVED_BLOCK = 1, 3


def is_skippable(magic: bytes) -> bool:
    """Tell whether four bytes open a skippable frame."""
    return SKIPPABLE_FIRST <= int.from_bytes(magic, "little") <= SKIPPABLE_LAST


def frame_header_size(data: bytes | memoryview) -> tuple[int, bool]:
    """Return (length of the frame header at the start of ``data``, whether a checksum follows the
    last block).
    """
    descriptor = data[4]
    single_segment = descriptor >> 5 & 1
    size_flag = descriptor >> 6
    content_size_bytes = CONTENT_SIZE_BYTES[size_flag] or single_segment
    header = 5 + (1 - single_segment) + WINDOW_ID_BYTES[descriptor & 3] + content_size_bytes
    return header, bool(descriptor & 4)


class FrameCursor:
    """Follows the blocks of one frame over pieces of input: how many of the next bytes may be
    decoded now.

    ``finished`` says that the frame, with its checksum, has been handed out completely.
    """

    def __init__(self, head: bytes | memoryview) -> None:
        """``head`` is the beginning of the frame, at least as long as its header."""
        self._pending, self._has_checksum = frame_header_size(head)
        self._in_blocks = True
        self.finished = False

    def advance(self, data: bytes | memoryview, max_output_bytes: int) -> int:
        """Return the length of a prefix of ``data`` that decodes to at most ``max_output_bytes`` (≥
        128 KiB).

        0 means that more input is needed.  Call again with what follows that prefix.
        Raises FormatError for a block type that does not exist.
        """
        taken = 0
        blocks = 0
        while not self.finished:
            if self._pending:
                step = min(self._pending, len(data) - taken)
                taken += step
                self._pending -= step
                if self._pending:
                    return taken
            if not self._in_blocks:
                self.finished = True
                break
            if len(data) - taken < 3 or (blocks + 1) * MAX_BLOCK_BYTES > max_output_bytes:
                return taken
            self._open_block(int.from_bytes(data[taken : taken + 3], "little"))
            blocks += 1
        return taken

    def _open_block(self, header: int) -> None:
        kind, size = header >> 1 & 3, header >> 3
        if kind == RESERVED_BLOCK or size > MAX_BLOCK_BYTES:
            raise FormatError("the zstd stream has a block of an unknown kind or impossible size")
        self._pending = 3 + (1 if kind == RLE_BLOCK else size)
        if header & 1:
            self._in_blocks = False
            self._pending += 4 if self._has_checksum else 0
