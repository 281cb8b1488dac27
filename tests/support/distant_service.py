"""``python -m tests.support.distant_service`` is the mount service, whose registries are far away:
so processes can be killed while blobs arrive.
"""

from __future__ import annotations

import time

from lamina.registry.repository_source import RepositorySource
from tests.support.service import run

DELAY_S = 0.01
_read_into = RepositorySource.read_into


def _read_slowly(
    self: RepositorySource, blob_id: str, offset: int, buffer: memoryview, timeout_s: float
) -> None:
    time.sleep(DELAY_S)
    _read_into(self, blob_id, offset, buffer, timeout_s)


if __name__ == "__main__":
    RepositorySource.read_into = _read_slowly  # type: ignore[method-assign]
    run("tests.support.distant_service")
