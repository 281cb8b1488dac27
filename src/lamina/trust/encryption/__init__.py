"""Encrypted layers (ocicrypt): who can read them, and with which keys."""
