"""A cache of stored bytes for many guests, without keys: what registries send, kept as it came."""
