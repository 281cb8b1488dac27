"""Two hosts on this machine: network namespaces joined by a veth pair with a token bucket on each
end.

Processes are entered with ``nsenter --net=``, not ``ip netns exec``: the latter makes a mount
namespace of its own, in which a mount of one command is not seen by the next.
"""

from __future__ import annotations

import os
import subprocess
from typing import NamedTuple, Self

SERVER_ADDRESS = "192.0.2.1"
CLIENT_ADDRESS = "192.0.2.2"
"""Addresses set aside for documentation (RFC 5737): they are nobody's.  Those of a further link are
higher by 4.
"""
BURST_BYTES = 32 << 10


class Traffic(NamedTuple):
    """Bytes on the wire at the client's end, Ethernet headers included."""

    received_bytes: int
    sent_bytes: int


class Link:
    """A server host and a client host with a link of ``rate`` (as ``tc`` writes it, "24mbit")
    between them.  The client host may be that of another link, ``beside``.
    """

    _client: str
    number: int

    def __init__(self, rate: str, beside: Link | None = None) -> None:
        self.rate = rate
        number = 0 if beside is None else beside.number + 1
        self.number = number
        self.server_address = _higher(SERVER_ADDRESS, 4 * number)
        self._device = f"link{number}"
        self._server = f"lamina-s{number}-{os.getpid()}"
        self._client = f"lamina-c{os.getpid()}" if beside is None else beside._client
        self._hosts = [self._server] if beside else [self._server, self._client]

    def __enter__(self) -> Self:
        device = self._device
        addresses = self.server_address, _higher(CLIENT_ADDRESS, 4 * self.number)
        try:
            for name in self._hosts:
                _run("ip", "netns", "add", name)
            _run(
                *f"ip -n {self._server} link add {device} type veth peer {device} netns".split(),
                self._client,
            )
            for name, address in zip((self._server, self._client), addresses, strict=True):
                _run(*f"ip -n {name} address add {address}/30 dev {device}".split())
                _run(*f"ip -n {name} link set lo up".split())
                _run(*f"ip -n {name} link set {device} up".split())
                shape = f"root tbf rate {self.rate} burst {BURST_BYTES} latency 200ms"
                _run(*f"tc -n {name} qdisc add dev {device} {shape}".split())
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Take its hosts away; the link goes with them."""
        for name in self._hosts:
            subprocess.run(["ip", "netns", "delete", name], stderr=subprocess.DEVNULL, check=False)

    def on_server(self, *command: str) -> list[str]:
        """The command line that runs a command on the server host."""
        return ["nsenter", f"--net=/run/netns/{self._server}", *command]

    def on_client(self, *command: str) -> list[str]:
        """The command line that runs a command on the client host."""
        return ["nsenter", f"--net=/run/netns/{self._client}", *command]

    def traffic(self) -> Traffic:
        """Counters of the client's end of the link since it was made."""
        table = subprocess.run(
            self.on_client("cat", "/proc/net/dev"), check=True, capture_output=True, text=True
        ).stdout
        fields = (
            next(line for line in table.splitlines() if f"{self._device}:" in line)
            .split(":")[1]
            .split()
        )
        return Traffic(int(fields[0]), int(fields[8]))


def _higher(address: str, step: int) -> str:
    head, _, last = address.rpartition(".")
    return f"{head}.{int(last) + step}"


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
