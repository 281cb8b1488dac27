"""``python -m lamina`` is the command line."""

from __future__ import annotations

from lamina.cli import entry

if __name__ == "__main__":
    entry()
