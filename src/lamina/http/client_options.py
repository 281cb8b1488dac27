"""How clients talk to registries: transport security, credentials, deadlines."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class ClientOptions:
    """How to talk to registries.  Local places ignore all of it.

    ``plain_http``: None lets loopback hosts fall back to HTTP, True asks for HTTP, False forbids
    it. ``timeout_s`` bounds every wait for bytes, and connecting unless ``connect_timeout_s`` does;
    ``deadline_s`` bounds one request with all its retries.  ``hosts_dirs`` are folders with
    ``HOST/hosts.toml``, which say what mirrors a registry has; None means those that
    ``LAMINA_HOSTS_DIR`` names.  Without ``plain_credentials`` no credentials go to another machine
    over plain HTTP, where it could be anybody.  ``credential_providers`` are a kubelet's: their
    configuration, and the folder of the programs.  At ``login_socket`` a newer login is asked for
    when ``username`` and ``password`` are refused.
    """

    plain_http: bool | None = None
    ca_file: str | None = None
    verify_tls: bool = True
    authfile: str | None = None
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    timeout_s: float = 30.0
    deadline_s: float = 300.0
    attempts: int = 4
    connections: int = 8
    push_chunk_bytes: int = 16 << 20
    connect_timeout_s: float | None = None
    hosts_dirs: tuple[str, ...] | None = None
    plain_credentials: bool = True
    credential_providers: tuple[str, str] | None = None
    login_socket: str | None = None
