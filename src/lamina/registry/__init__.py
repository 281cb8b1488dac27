"""References, credentials, OCI registries, layout folders and archives, manifests."""
