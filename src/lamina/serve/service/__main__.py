"""``python -m lamina.serve.service`` is the mount service; see :func:`main`."""

from __future__ import annotations

import sys

from lamina.serve.service.start import main

if __name__ == "__main__":
    main(sys.argv[1:])
