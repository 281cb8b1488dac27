"""A real registry on loopback: Debian's docker-registry, plain, with a login, with TLS.

A pytest plugin: the fixtures ``registry`` (one a session), ``registry_with_login`` and
``registry_with_tls``. Benchmarks and demos use :func:`start_registry` without pytest.
"""

from __future__ import annotations

import contextlib
import http.client
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import tools
from tests.support.listening import listening_port
from tests.support.waiting import LIMIT_S

PROGRAM = "docker-registry"
_LAST = '"HEAD /v2/ HTTP'
USER, PASSWORD = "ada", "correct horse"
"""The login of ``registry_with_login``."""

_CONFIG = """\
version: 0.1
log: {{level: error, accesslog: {{disabled: {quiet}}}}}
storage:
  filesystem: {{rootdirectory: {root}}}
  delete: {{enabled: true}}
http:
  addr: {host}:0
{extra}
"""


@dataclass(frozen=True, slots=True)
class RegistryServer:
    """A running registry."""

    host: str
    """``127.0.0.1:PORT``."""
    root: Path
    """Where it stores blobs: ``docker/registry/v2/blobs/sha256/ab/<hex>/data``."""
    ca_file: Path | None = None
    log: Path | None = None
    """What it prints; with an access log a line a request."""

    def reference(self, name: str) -> str:
        """``docker://127.0.0.1:PORT/NAME``."""
        return f"docker://{self.host}/{name}"

    def logged(self) -> str:
        """What it has printed, with all that was answered: a request that is made now, and is in
        the access log, came after those.
        """
        assert self.log is not None
        before = self.log.read_text(errors="replace").count(_LAST)
        connection = http.client.HTTPConnection(self.host, timeout=60)
        with contextlib.closing(connection):
            connection.request("HEAD", "/v2/")
            connection.getresponse().read()
        end_s = time.monotonic() + LIMIT_S
        while (text := self.log.read_text(errors="replace")).count(_LAST) <= before:
            assert time.monotonic() < end_s, "it has no access log"
            time.sleep(0.01)
        return text

    def blob_path(self, digest: str) -> Path:
        """The file of a blob: tests damage it."""
        algorithm, _, encoded = digest.partition(":")
        blobs = self.root / "docker/registry/v2/blobs" / algorithm
        return blobs / encoded[:2] / encoded / "data"


@contextlib.contextmanager
def start_registry(
    folder: Path,
    *,
    extra: str = "",
    host: str = "127.0.0.1",
    ca_file: Path | None = None,
    program: str | None = None,
    access_log: bool = False,
) -> Iterator[RegistryServer]:
    """Run docker-registry on a free port with its storage in ``folder`` until the block ends.

    ``extra`` is added to its YAML configuration (lines below ``http:`` are indented by two).
    ``program`` may be another that is configured so, as distribution 3.
    """
    program = program or tools.find_program(PROGRAM) or PROGRAM
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "config.yml"
    root = folder / "storage"
    quiet = "false" if access_log else "true"
    config.write_text(_CONFIG.format(root=root, host=host, extra=extra, quiet=quiet))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [program, "serve", str(config)], stdout=log, stderr=log, stdin=subprocess.DEVNULL
        )
        try:
            port = listening_port(process, folder / "log")
            yield RegistryServer(f"{host}:{port}", root, ca_file, folder / "log")
        finally:
            process.terminate()
            process.wait(60)


def login_config(folder: Path) -> str:
    """The configuration lines for HTTP Basic with USER and PASSWORD; needs ``htpasswd``."""
    folder.mkdir(parents=True, exist_ok=True)
    line = subprocess.run(
        ["htpasswd", "-nbB", "-C", "4", USER, PASSWORD], capture_output=True, check=True, text=True
    ).stdout
    file = folder / "htpasswd"
    file.write_text(line)
    return f"auth:\n  htpasswd: {{realm: test, path: {file}}}\n"


def make_certificate(folder: Path) -> tuple[Path, Path, Path]:
    """An authority of our own and a certificate for 127.0.0.1 and localhost: CA, chain, key."""
    folder.mkdir(parents=True, exist_ok=True)
    ca_key, ca = folder / "ca.key", folder / "ca.crt"
    key, request, certificate = folder / "tls.key", folder / "tls.csr", folder / "tls.crt"
    names = folder / "names"
    names.write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\nbasicConstraints=CA:FALSE\n")
    new = ["openssl", "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    sign = ["openssl", "x509", "-req", "-days", "2", "-in", request, "-CA", ca]
    for command in (
        [*new, "-x509", "-days", "2", "-subj", "/CN=test CA", "-keyout", ca_key, "-out", ca],
        [*new, "-subj", "/CN=registry", "-keyout", key, "-out", request],
        [*sign, "-CAkey", ca_key, "-CAcreateserial", "-extfile", names, "-out", certificate],
    ):
        subprocess.run([str(word) for word in command], check=True, capture_output=True)
    return ca, certificate, key


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryServer]:
    """A plain registry that all tests of a worker share: use repository names of your own."""
    tools.require_tool(PROGRAM)
    with start_registry(tmp_path_factory.mktemp("registry")) as server:
        yield server


@pytest.fixture
def registry_with_login(tmp_path: Path) -> Iterator[RegistryServer]:
    """A registry that wants USER and PASSWORD by HTTP Basic."""
    tools.require_tool(PROGRAM, "htpasswd")
    folder = tmp_path / "registry-with-login"
    with start_registry(folder, extra=login_config(folder)) as server:
        yield server


@pytest.fixture
def registry_with_tls(tmp_path: Path) -> Iterator[RegistryServer]:
    """A registry that speaks TLS with a certificate of its ``ca_file``."""
    tools.require_tool(PROGRAM, "openssl")
    folder = tmp_path / "registry-with-tls"
    ca, certificate, key = make_certificate(folder)
    extra = f"  tls: {{certificate: {certificate}, key: {key}}}"
    with start_registry(folder, extra=extra, ca_file=ca) as server:
        yield server
