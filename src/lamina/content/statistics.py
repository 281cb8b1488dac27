"""What reading cost."""

from __future__ import annotations

from dataclasses import dataclass


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
        self.requests += other.requests
        self.fetched_bytes += other.fetched_bytes
        self.decoded_pieces += other.decoded_pieces
        self.decoded_bytes += other.decoded_bytes
        self.ahead_bytes += other.ahead_bytes
        self.copied_bytes += other.copied_bytes
        self.salvaged_bytes += other.salvaged_bytes
