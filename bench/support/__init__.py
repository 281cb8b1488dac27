"""What the benchmarks share: hosts in network namespaces, a registry, peers, reports.

Lamina is measured as it is installed: pip compiles its modules, so they are compiled here too, and
an environment that forbids Python to use that (``PYTHONDONTWRITEBYTECODE``) does not reach the
processes that are measured.
"""

from __future__ import annotations

import compileall
import os
from pathlib import Path

os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
compileall.compile_dir(Path(__file__).resolve().parents[2] / "src", quiet=2)
