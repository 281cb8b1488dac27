"""Protocols as bytes and values: nothing here opens a socket or a device."""
