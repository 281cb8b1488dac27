"""A program that gives credentials, as a kubelet has one, and its configuration."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from lamina.registry.credential_providers import CredentialProviders

API = "credentialprovider.kubelet.k8s.io/v1"
PROGRAM = f"""#!{sys.executable} -I
import json, os, sys
folder = os.path.dirname(sys.argv[0])
request = json.load(sys.stdin)
with open(folder + "/calls", "a") as calls:
    calls.write(json.dumps([request, sys.argv[1:], os.environ.get("REGION")]) + "\\n")
sys.stdout.write(open(folder + "/answer").read())
"""


class Provider:
    """A program and its configuration, and what it was asked."""

    def __init__(self, folder: Path, *patterns: str, duration: str = "12h") -> None:
        self.folder = folder
        self.config = folder / "config.json"
        program = folder / "cloud-login"
        program.write_text(PROGRAM)
        program.chmod(0o755)
        (folder / "calls").touch()
        self.settings = {
            "name": program.name,
            "apiVersion": API,
            "matchImages": list(patterns or ["*.example"]),
            "defaultCacheDuration": duration,
            "args": ["get-credentials"],
            "env": [{"name": "REGION", "value": "north"}],
        }
        self.write()

    def write(self, **more: Any) -> None:
        kind = {"kind": "CredentialProviderConfig", "apiVersion": "kubelet.config.k8s.io/v1"}
        self.config.write_text(json.dumps({**kind, "providers": [{**self.settings, **more}]}))

    def answers(self, key: str, duration: str | None = None, **auth: tuple[str, str]) -> None:
        logins = {
            pattern: {"username": user, "password": password}
            for pattern, (user, password) in auth.items()
        }
        answer = {"kind": "CredentialProviderResponse", "apiVersion": API, "cacheKeyType": key}
        more = {} if duration is None else {"cacheDuration": duration}
        (self.folder / "answer").write_text(json.dumps({**answer, **more, "auth": logins}))

    def calls(self) -> list[Any]:
        return [json.loads(line) for line in (self.folder / "calls").read_text().splitlines()]

    def opened(self, clock: Any = None) -> CredentialProviders:
        clocks = () if clock is None else (clock,)
        return CredentialProviders(str(self.config), str(self.folder), *clocks)
