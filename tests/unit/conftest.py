"""A key broker that the tests of a module share: its client's and its server's."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.key_broker import RunningBroker, running_broker


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningBroker]:
    """A broker with an empty store."""
    with running_broker(tmp_path_factory.mktemp("broker")) as broker:
        yield broker
