"""The build backend (PEP 517): that of setuptools, which finds the files of ``shared_files`` made
when it builds a wheel.  An editable installation has none.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import (
    build_editable,
    build_sdist,
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
    get_requires_for_build_wheel,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)
from shared_files import write_anew

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]


def build_wheel(wheel_directory: str, *rest: Any, **settings: Any) -> str:
    """Build a wheel with manual, completion and units in it, and return its name."""
    # The patterns of [tool.setuptools.data-files] look here.
    write_anew(Path("build/shared"))
    name: str = build_meta.build_wheel(wheel_directory, *rest, **settings)
    return name
