"""Folders of certificates as QEMU, nbdkit and GnuTLS have them."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.support import tools


def make_tls_folder(folder: Path, *, with_client: bool = True) -> Path:
    """Make an authority, a certificate of ``localhost`` for a server, and one for a client."""
    tools.require_tool("openssl")
    folder.mkdir()
    authority, key = folder / "ca-cert.pem", folder / "ca-key.pem"
    new = ["openssl", "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    _run(*new, "-x509", "-days", "2", "-subj", "/CN=test CA", "-keyout", key, "-out", authority)
    for name in ("server", "client") if with_client else ("server",):
        request, names = folder / "request", folder / "names"
        names.write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\nbasicConstraints=CA:FALSE\n")
        _run(*new, "-subj", f"/CN={name}", "-keyout", folder / f"{name}-key.pem", "-out", request)
        sign = ["openssl", "x509", "-req", "-days", "2", "-in", request, "-CA", authority]
        sign += ["-CAkey", key, "-CAcreateserial", "-extfile", names]
        _run(*sign, "-out", folder / f"{name}-cert.pem")
    return folder


def _run(*command: str | Path) -> None:
    subprocess.run(command, check=True, capture_output=True)
