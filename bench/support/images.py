"""The images that are measured: OCI layouts with the tag ``latest``."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def parser(description: str | None, rounds: int, of_what: str) -> argparse.ArgumentParser:
    """The options that every benchmark of an image has."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawTextHelpFormatter
    )
    made.add_argument("--rounds", type=int, default=rounds, help=f"{of_what} ({rounds})")
    made.add_argument(
        "--image", default="node", help="minbase, node, python, or the path of an OCI layout (node)"
    )
    made.add_argument("--json", type=Path, help="write results here")
    return made


def image_layout(name: str) -> Path:
    """The OCI layout of a test image, built if it is not there, or the one at a path."""
    if (Path(name) / "index.json").exists():
        return Path(name).resolve()
    build = [sys.executable, "-m", "tests.support.images", name]
    done = subprocess.run(build, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return Path(done.stdout.split()[-1])


def layer_files(layout: Path) -> list[Path]:
    """The layers of the image in a layout, lowest first."""
    index = json.loads((layout / "index.json").read_bytes())
    manifest: dict[str, Any] = json.loads(_blob(layout, index["manifests"][0]).read_bytes())
    return [_blob(layout, layer) for layer in manifest["layers"]]


def _blob(layout: Path, descriptor: dict[str, Any]) -> Path:
    return layout / "blobs" / str(descriptor["digest"]).replace(":", "/")
