"""The cache for guests, in this process."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

from lamina.http.client_options import ClientOptions
from lamina.serve.cache.blob_cache import BlobCache
from lamina.serve.cache.channels import ChannelServer
from lamina.serve.cache.server import CacheServer
from lamina.serve.cache.upstream import Upstream
from lamina.serve.nbd.listening import listen_tcp, listen_unix
from lamina.store.node import NodeStore


@contextlib.contextmanager
def running_cache(
    store: Path,
    *prefixes: str,
    budget: int | None = None,
    options: ClientOptions | None = None,
    port: int = 0,
    channel: Path | None = None,
) -> Iterator[str]:
    """Serve a cache until the block ends; its ``HOST:PORT``.  *channel* is a unix socket that
    serial ports of guests are connected to.
    """
    with (
        Upstream(prefixes, options or ClientOptions()) as upstream,
        BlobCache(upstream, NodeStore(store, budget=budget)) as cache,
        CacheServer(listen_tcp("127.0.0.1", port), cache) as server,
    ):
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            host, port = server.server_address
            with channels(channel, server):
                yield f"{host}:{port}"
        finally:
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def channels(path: Path | None, server: CacheServer) -> Iterator[None]:
    """Take the serial ports of guests, if there is a path for them."""
    if path is None:
        yield
        return
    with ChannelServer(listen_unix(str(path)), server.adopt):
        yield


def name_mirror(folder: Path, registry: str, mirror: str, *, alone: bool = False) -> str:
    """Write the file that names the cache as the mirror of a registry; the folder of such files.

    *alone*: the registry itself is asked for nothing.
    """
    path = folder / registry
    path.mkdir(parents=True, exist_ok=True)
    text = f'[host."http://{mirror}"]\ncapabilities = ["pull", "resolve", "referrers"]\n'
    if alone:
        text = f'server = "http://{mirror}"\n'
    (path / "hosts.toml").write_text(text)
    return str(folder)
