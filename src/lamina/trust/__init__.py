"""Keys, encryption of layers (ocicrypt), signatures (cosign), policy, key broker."""

from __future__ import annotations

import os

PROVIDERS_VARIABLE = "OCICRYPT_KEYPROVIDER_CONFIG"
"""Environment variable that names the configuration file of key providers."""


def providers_file() -> str | None:
    """Return the configuration file of key providers that the environment names, None if none."""
    return os.environ.get(PROVIDERS_VARIABLE) or None
