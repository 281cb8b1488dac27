"""The client of a key broker (KBS protocol)."""
