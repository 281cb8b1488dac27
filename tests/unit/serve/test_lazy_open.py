"""An image that cannot be opened after a takeover: who hears of it, and what that keeps."""

from __future__ import annotations

import traceback
from types import SimpleNamespace
from typing import Any, cast

import pytest

from lamina.errors import FetchError
from lamina.serve.service import lazy_open
from lamina.serve.service.lazy_open import LazilyOpenedImage


def test_an_error_that_many_readers_hear_holds_the_last_of_them_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def open_spec(_spec: object) -> None:
        raise FetchError("away")

    monkeypatch.setattr(lazy_open, "open_spec", open_spec)
    monkeypatch.setattr(lazy_open, "time", SimpleNamespace(monotonic=lambda: 0.0))
    late = LazilyOpenedImage(cast("Any", None))

    def frames() -> int:
        with pytest.raises(FetchError) as told:
            late.get()
        return len(list(traceback.walk_tb(told.value.__traceback__)))

    counts = [frames() for _ in range(10)]
    assert counts[1:] == [counts[1]] * 9
