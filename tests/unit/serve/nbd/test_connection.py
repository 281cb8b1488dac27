"""Requests of NBD that cannot be answered from what is here."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from tests.support.nbd_disk import Client, serving

from lamina.block.base import BytesDisk
from lamina.errors import StoreError
from lamina.wire import nbd
from lamina.wire.nbd import Command
from lamina.wire.nbd_reply import SIMPLE_REPLY, SIMPLE_REPLY_MAGIC


class UnknownDisk(BytesDisk):
    """A disk of which nobody can tell what is here."""

    def is_ready(self, _offset: int, _size_bytes: int) -> bool:
        raise StoreError("the map of what is here cannot be read")


def test_what_nobody_knows_to_be_here_is_fetched(tmp_path: Path) -> None:
    disk = cast("Any", UnknownDisk(bytes(8192)))
    with serving(disk, tmp_path), Client(tmp_path / "nbd.sock") as client:
        assert client.go() == 8192
        client.sock.sendall(nbd.REQUEST.pack(nbd.REQUEST_MAGIC, 0, Command.CACHE, 7, 0, 4096))
        assert SIMPLE_REPLY.unpack(client.take(SIMPLE_REPLY.size)) == (SIMPLE_REPLY_MAGIC, 0, 7)
