"""A source that a test writes in one method."""

from __future__ import annotations

from lamina.source.blob_source import BlobSource, Cost, require_length


class RangeSource(BlobSource):
    """What :meth:`read_range` returns is what comes."""

    name = "a source"
    cost = Cost.NODE

    def read_into(self, blob_id: str, offset: int, buffer: memoryview, timeout_s: float) -> None:
        data = self.read_range_within(blob_id, offset, len(buffer), timeout_s)
        require_length(len(data), self.name, blob_id, offset, len(buffer))
        buffer[:] = data

    def read_range_within(
        self, blob_id: str, offset: int, size_bytes: int, _timeout_s: float
    ) -> bytes:
        return self.read_range(blob_id, offset, size_bytes)

    def read_range(self, blob_id: str, offset: int, size_bytes: int) -> bytes:
        raise NotImplementedError
