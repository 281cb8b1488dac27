"""What reading cost."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(slots=True)
class Statistics:
    """What one blob, or several, cost so far.

    ``ahead_bytes`` of ``fetched_bytes`` were fetched before anybody asked.  ``copied_bytes`` came
    from other blobs of the node, ``salvaged_bytes`` were there from before a power cut.
    """

    requests: int = 0
    fetched_bytes: int = 0
    decoded_pieces: int = 0
    decoded_bytes: int = 0
    ahead_bytes: int = 0
    copied_bytes: int = 0
    salvaged_bytes: int = 0

    def add(self, other: Statistics) -> None:
        """Add what something else cost."""
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))
