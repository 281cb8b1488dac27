"""Keys, encryption of layers (ocicrypt), signatures (cosign), policy, key broker."""

PROVIDERS_VARIABLE = "OCICRYPT_KEYPROVIDER_CONFIG"
"""Environment variable that names the configuration file of key providers."""
