"""Where a run of neighbours ends: by steps that double, then halve."""

from __future__ import annotations

from collections.abc import Callable


def run_around(belongs: Callable[[int], bool], number: int, stop: int) -> range:
    """Return the numbers of ``range(stop)`` around *number* that belong together with it.

    They must be neighbours; then *belongs* is asked O(log n) times of a run of n.
    """
    left = _reach(lambda step: belongs(number - step), number)
    right = _reach(lambda step: belongs(number + step), stop - 1 - number)
    return range(number - left, number + right + 1)


def _reach(belongs: Callable[[int], bool], most: int) -> int:
    """Return the largest step up to *most* that still belongs, 0 if none does."""
    inside, step = 0, 1
    while inside + step <= most and belongs(inside + step):
        inside += step
        step *= 2
    while step > 1:
        step //= 2
        if inside + step <= most and belongs(inside + step):
            inside += step
    return inside
