"""A picture of two starts: what was asked for when, and when it had arrived.

Each request is a bar from its first to its last byte, in the order in which they were sent; both
starts have the same scale of time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from typing import Final, NamedTuple

from link import Request

WIDTH: Final = 960
MARGIN: Final = 40
LEFT: Final = 40
PANEL_HEIGHT: Final = 240
HEAD: Final = 58
GAP: Final = 62
"""Between panels: the scale of time and the heading of the next."""
COLOURS: Final = {
    "manifest and configuration": "#8a63d2",
    "file tree": "#d98324",
    "start artifact": "#1f9d67",
    "data": "#3572b0",
}


class Start(NamedTuple):
    """One start: what to call it, how long it took, and what was asked for."""

    title: str
    seconds: float
    requests: Sequence[Request]
    kinds: dict[str, str]
    """By digest, one of :data:`COLOURS`; all other blobs are data."""

    @property
    def received_bytes(self) -> int:
        """What came over the link."""
        return sum(request.received_bytes for request in self.requests)


def draw(starts: Sequence[Start]) -> str:
    """Return the SVG."""
    longest_s = max(start.seconds for start in starts) * 1.02
    height = HEAD + len(starts) * (PANEL_HEIGHT + GAP) + 14
    font = 'font-family="Helvetica, Arial, sans-serif" font-size="13" fill="#24292f"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" {font}>',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        *_legend(),
    ]
    for number, start in enumerate(starts):
        top = HEAD + number * (PANEL_HEIGHT + GAP) + 20
        lines += _panel(start, top, longest_s)
    return "\n".join([*lines, "</svg>"]) + "\n"


def _legend() -> Iterator[str]:
    x = LEFT
    for kind, colour in COLOURS.items():
        yield f'<rect x="{x}" y="16" width="12" height="12" rx="2" fill="{colour}"/>'
        yield f'<text x="{x + 18}" y="27">{kind}</text>'
        x += 46 + 7 * len(kind)
    yield (
        f'<text x="{WIDTH - MARGIN}" y="27" text-anchor="end" fill="#57606a">'
        "a bar a request, from the first byte to the last</text>"
    )


def _panel(start: Start, top: float, longest_s: float) -> Iterator[str]:
    scale = (WIDTH - LEFT - MARGIN) / longest_s
    count = len(start.requests)
    plural = "" if count == 1 else "s"
    told = f"{start.seconds:.1f} s, {start.received_bytes / 1e6:.1f} MB, {count} request{plural}"
    yield (
        f'<text x="{LEFT}" y="{top - 8:.1f}"><tspan font-weight="bold">{escape(start.title)}'
        f'</tspan><tspan dx="12" fill="#57606a">{told}</tspan></text>'
    )
    right, bottom = WIDTH - MARGIN, top + PANEL_HEIGHT
    yield (
        f'<rect x="{LEFT}" y="{top}" width="{right - LEFT}" height="{PANEL_HEIGHT}" '
        'fill="#f6f8fa" stroke="#d0d7de"/>'
    )
    for second in range(int(longest_s) + 1):
        x = LEFT + second * scale
        yield (
            f'<line x1="{x:.1f}" y1="{top}" x2="{x:.1f}" y2="{bottom}" stroke="#d0d7de" '
            'stroke-width="0.5"/>'
        )
        yield (
            f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle" fill="#57606a">'
            f"{second} s</text>"
        )
    step = min((PANEL_HEIGHT - 12) / max(count, 1), 24)
    thick = min(max(step * 0.8, 1.6), 14)
    for number, request in enumerate(start.requests):
        x, y = LEFT + request.begin_s * scale, top + 6 + number * step + (step - thick) / 2
        width = max((request.end_s - request.begin_s) * scale, 1.5)
        colour = COLOURS[_kind(start, request)]
        yield (
            f'<rect x="{x:.1f}" y="{y:.2f}" width="{width:.1f}" height="{thick:.2f}" '
            f'fill="{colour}"/>'
        )
    x = LEFT + start.seconds * scale
    yield f'<line x1="{x:.1f}" y1="{top}" x2="{x:.1f}" y2="{bottom}" stroke="#cf222e"/>'
    # Where there are no bars: late ones are at the bottom.
    anchor, aside = ("end", -6) if x > (LEFT + right) / 2 else ("start", 6)
    yield (
        f'<text x="{x + aside:.1f}" y="{top + 18}" text-anchor="{anchor}" fill="#cf222e">'
        "the program has ended</text>"
    )


def _kind(start: Start, request: Request) -> str:
    digest = request.path.rpartition("/")[2]
    if "/blobs/" not in request.path:
        return "manifest and configuration"
    return start.kinds.get(digest, "data")
