"""Keys, encryption of layers (ocicrypt), signatures (cosign), policy, key broker."""
