"""``python -m tests.support.service`` is the mount service, which also opens images of the tests: a
reference that is a folder with ``image.boot`` (:func:`tests.support.serving.open_image`).
"""

from __future__ import annotations

import os
import sys

from lamina.serve.service import program, spec, start
from tests.support.serving import ROOT, add_devices, open_image


def run(module: str) -> None:
    """Be the service, and start successors as ``module``."""
    program.MODULE = module
    spec.open_reference = open_image
    add_devices()
    # The service leaves this folder.
    os.environ["PYTHONPATH"] = f"{ROOT / 'src'}:{ROOT}"
    start.main(sys.argv[1:])


if __name__ == "__main__":
    run("tests.support.service")
