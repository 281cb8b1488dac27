"""docker-registry on the server host of a link, with a delaying proxy in front for each wanted
round trip time.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from support.network import Link
from support.processes import Process

PORT = 5000
DELAY_PROXY = Path(__file__).with_name("delay.py")
CONFIGURATION = """\
version: 0.1
log: {{level: warn, accesslog: {{disabled: false}}}}
storage: {{filesystem: {{rootdirectory: {root}}}, delete: {{enabled: false}}}}
http: {{addr: ":{port}"}}
"""


class Registry:
    """A registry that the client host reaches and that is filled from the server host."""

    def __init__(self, link: Link, folder: Path) -> None:
        self.address = f"{link.server_address}:{PORT}"
        self._link = link
        self._folder = folder
        self._stack = ExitStack()
        self._proxy_ports: dict[float, int] = {}
        self._log = folder / "registry.log"

    def __enter__(self) -> Self:
        configuration = self._folder / "registry.yml"
        configuration.write_text(CONFIGURATION.format(root=self._folder / "registry", port=PORT))
        command = self._link.on_server("docker-registry", "serve", str(configuration))
        self._stack.enter_context(Process(command, log=self._log))
        self._wait_until_it_answers()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def address_at(self, rtt_ms: float) -> str:
        """The address that answers with a round trip time of at least ``rtt_ms``; 0 is the link as
        it is.
        """
        if not rtt_ms:
            return self.address
        if rtt_ms not in self._proxy_ports:
            port = PORT + 1 + len(self._proxy_ports)
            proxy = (sys.executable, str(DELAY_PROXY), str(port), str(PORT), str(rtt_ms))
            log = self._folder / f"delay-{port}.log"
            self._stack.enter_context(Process(self._link.on_server(*proxy), log=log, ready="ready"))
            self._proxy_ports[rtt_ms] = port
        return f"{self._link.server_address}:{self._proxy_ports[rtt_ms]}"

    def run(self, *command: str) -> str:
        """Run a command on the server host, where the registry is at 127.0.0.1; return its
        output.
        """
        done = subprocess.run(
            self._link.on_server(*command), capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()[-2000:]}")
        return done.stdout

    def push_file(self, repository: str, path: Path) -> str:
        """Push one file as a blob of a repository; return its digest."""
        with path.open("rb") as file:
            digest = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
        base = f"http://127.0.0.1:{PORT}/v2/{repository}/blobs/uploads/"
        head = self.run("curl", "-sS", "-f", "-X", "POST", "-D", "-", "-o", "/dev/null", base)
        location = next(
            line.split(None, 1)[1].strip()
            for line in head.splitlines()
            if line.lower().startswith("location:")
        )
        join = "&" if "?" in location else "?"
        upload = ("-X", "PUT", "-H", "Content-Type: application/octet-stream", "-T", str(path))
        self.run(
            "curl", "-sS", "-f", *upload, "-o", "/dev/null", f"{location}{join}digest={digest}"
        )
        return digest

    def request_count(self) -> int:
        """Requests answered so far, from the access log."""
        return self._log.read_text(errors="replace").count(' HTTP/1.1" ')

    def manifest(self, repository: str, tag: str) -> dict[str, object]:
        """The manifest of a tag."""
        url = f"http://127.0.0.1:{PORT}/v2/{repository}/manifests/{tag}"
        accept = "Accept: application/vnd.oci.image.manifest.v1+json"
        answer: dict[str, object] = json.loads(self.run("curl", "-sS", "-f", "-H", accept, url))
        return answer

    def _wait_until_it_answers(self) -> None:
        deadline_s = time.monotonic() + 15
        probe = self._link.on_server(
            "curl", "-s", "-f", "-o", "/dev/null", f"http://127.0.0.1:{PORT}/v2/"
        )
        while subprocess.run(probe, check=False).returncode:
            if time.monotonic() > deadline_s:
                raise RuntimeError(
                    f"docker-registry does not answer: {self._log.read_text()[-2000:]}"
                )
            time.sleep(0.1)


def loopback_registry(folder: Path, port: int) -> Process:
    """A docker-registry on this host's loopback that answers already; its data is in ``folder``."""
    config = folder / "registry.yml"
    config.write_text(
        "version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\n"
        f"storage: {{filesystem: {{rootdirectory: {folder / 'registry'}}}}}\n"
        f'http: {{addr: "127.0.0.1:{port}"}}\n'
    )
    process = Process(["docker-registry", "serve", str(config)], log=folder / "registry.log")
    url = f"http://127.0.0.1:{port}/v2/"
    retry = ("--retry", "50", "--retry-delay", "0", "--retry-connrefused", "--retry-max-time", "20")
    subprocess.run(["curl", "-sSf", *retry, url], stdout=subprocess.DEVNULL, check=True)
    return process
