"""Serving a cache for guests from the command line."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from argparse import Namespace
from typing import TYPE_CHECKING

from lamina.cli import console
from lamina.cli.end_signals import held_end_signals
from lamina.cli.output import print_json
from lamina.errors import UsageError

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

    from lamina.serve.cache.server import CacheServer


def serve_cache(args: Namespace) -> int:
    """Serve until SIGTERM or SIGINT."""
    from lamina.cli.opening import node_store
    from lamina.cli.options import client_options
    from lamina.serve.cache.blob_cache import BlobCache
    from lamina.serve.cache.server import CacheServer
    from lamina.serve.cache.upstream import Upstream

    store = node_store(args)
    with (
        held_end_signals() as wait,
        Upstream(args.served, client_options(args)) as upstream,
        BlobCache(upstream, store) as cache,
        contextlib.closing(_listen(args)) as listening,
        CacheServer(listening, cache) as server,
    ):
        _announce(args, listening)
        thread = threading.Thread(target=server.run, name="lamina-cache")
        thread.start()
        with _channels(args, server):
            wait()
        server.shutdown()
        thread.join()
        if args.socket is not None:
            with contextlib.suppress(OSError):
                os.unlink(args.socket)
    return 0


@contextlib.contextmanager
def _channels(args: Namespace, server: CacheServer) -> Iterator[None]:
    """Serve guests that have no network too."""
    if args.channel is None:
        yield
        return
    from lamina.serve.cache.channels import ChannelServer
    from lamina.serve.nbd.listening import listen_unix

    with ChannelServer(listen_unix(args.channel), server.adopt):
        console.info(f"serial ports of guests are taken on {args.channel}")
        yield
    with contextlib.suppress(OSError):
        os.unlink(args.channel)


def _listen(args: Namespace) -> socket.socket:
    from lamina.cli.broker_serving import listen_address
    from lamina.serve.nbd.listening import listen_tcp, listen_unix

    if (args.socket is None) == (args.listen is None):
        raise UsageError("one of --socket and --listen says where the cache is served")
    if args.socket is not None:
        return listen_unix(args.socket)
    return listen_tcp(*listen_address(args.listen))


def _announce(args: Namespace, listening: socket.socket) -> None:
    where = listening.getsockname()
    if isinstance(where, tuple):
        host = f"[{where[0]}]" if ":" in where[0] else where[0]
        told = {"url": f"http://{host}:{where[1]}"}
    else:
        told = {"socket": os.path.abspath(os.fsdecode(where))}
    if args.json:
        print_json(told)
        sys.stdout.flush()
    console.info(f"serving what {', '.join(args.served)} has on {next(iter(told.values()))}")
