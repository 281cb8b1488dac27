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
"""Addresses set aside for documentation (RFC 5737): they are nobody's."""
BURST_BYTES = 32 << 10


class Traffic(NamedTuple):
    """Bytes on the wire at the client's end, Ethernet headers included."""

    received_bytes: int
    sent_bytes: int


class Link:
    """A server host and a client host with a link of ``rate`` (as ``tc`` writes it, "24mbit")
    between them.
    """

    def __init__(self, rate: str) -> None:
        self.rate = rate
        self._server = f"lamina-s{os.getpid()}"
        self._client = f"lamina-c{os.getpid()}"

    def __enter__(self) -> Self:
        try:
            for name in (self._server, self._client):
                _run("ip", "netns", "add", name)
            _run(
                *f"ip -n {self._server} link add link0 type veth peer link0 netns".split(),
                self._client,
            )
            for name, address in ((self._server, SERVER_ADDRESS), (self._client, CLIENT_ADDRESS)):
                _run(*f"ip -n {name} address add {address}/30 dev link0".split())
                _run(*f"ip -n {name} link set lo up".split())
                _run(*f"ip -n {name} link set link0 up".split())
                shape = f"root tbf rate {self.rate} burst {BURST_BYTES} latency 200ms"
                _run(*f"tc -n {name} qdisc add dev link0 {shape}".split())
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Take both hosts away; the link goes with them."""
        for name in (self._server, self._client):
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
        fields = next(line for line in table.splitlines() if "link0:" in line).split(":")[1].split()
        return Traffic(int(fields[0]), int(fields[8]))


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
