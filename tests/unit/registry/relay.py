"""A TCP relay that breaks connections."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def dropping_relay(
    host: str, drop_after: int, *, answers: bool = False
) -> Iterator[tuple[str, list[int]]]:
    """Pass connections on to ``host``; break the first whose client sent more than ``drop_after``,
    or got so much with ``answers``.

    Gives ``127.0.0.1:PORT`` and the list of byte counts at which connections were broken.
    """
    drops: list[int] = []
    name, _, port = host.partition(":")
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    client, _ = server.accept()
                    threading.Thread(target=relay, args=(client,), daemon=True).start()

        def relay(client: socket.socket) -> None:
            with client, socket.create_connection((name, int(port))) as upstream:
                back = threading.Thread(
                    target=pump, args=(upstream, client, drop_after if answers else None)
                )
                back.start()
                pump(client, upstream, None if answers else drop_after)
                back.join()

        def pump(source: socket.socket, sink: socket.socket, limit: int | None) -> None:
            passed = 0
            with contextlib.suppress(OSError):
                while data := source.recv(65536):
                    sink.sendall(data)
                    passed += len(data)
                    if limit is not None and passed > limit and not drops:
                        drops.append(passed)
                        source.shutdown(socket.SHUT_RDWR)
                        break
            with contextlib.suppress(OSError):
                sink.shutdown(socket.SHUT_RDWR)

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}", drops
        server.shutdown(socket.SHUT_RDWR)
        thread.join(60)
