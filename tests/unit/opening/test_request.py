"""A request says everything, survives being sent, and is never opened by less than it asks."""

from __future__ import annotations

import inspect
import json
import os
from pathlib import Path

import msgspec
import pytest

import lamina
from lamina.api.client import client_options
from lamina.errors import UsageError
from lamina.http.client_options import ClientOptions
from lamina.oci.reference import parse_reference
from lamina.oci.start_manifest import StartRule
from lamina.opening.request import KeyBroker, OpenRequest, for_another_process, request_of
from lamina.serve.service.old_wire import describe_spec
from lamina.serve.service.spec import MountSpec
from lamina.store.node import NodeStore

FULL = OpenRequest(
    reference="registry.example/app:1",
    pinned="registry.example/app:1@sha256:" + "0" * 64,
    platform="linux/arm64",
    index="never",
    pull="missing",
    refresh=True,
    decryption_keys=("key.pem:pass=tea",),
    key_providers="/etc/providers.json",
    key_broker=KeyBroker(url="https://broker:1", ca_file="ca.crt"),
    policy="policy.json",
    allow_older=True,
    client=ClientOptions(plain_http=True, username="me", password="secret", attempts=2),
    store="/var/store",
    store_budget="20G",
    sources=("oci:/cache",),
    blob_dirs=("/blobs",),
    start=StartRule("first", ("node", "-v")),
    proven_layers=True,
)

# What the mount service of 76f8115 handed to its successor for a mount.
BEFORE = b"""{"reference": "oci:/srv/app:1", "mountpoint": "/mnt", "store": "/var/lib/lamina",
"store_budget": null, "device": "fuse-blob", "options": ["suid"], "platform": "linux/amd64",
"index": "auto", "decryption_keys": ["/k.pem"], "key_providers": null, "key_broker": {"url":
"https://broker:1", "ca_file": null, "evidence": "sample", "measurement": "abcde",
"init_data_file": null}, "policy": "/p.json", "allow_older": false, "client": {"plain_http": null,
"ca_file": null, "verify_tls": true, "authfile": null, "username": null, "password": null,
"timeout_s": 30.0, "deadline_s": 300.0, "attempts": 4, "connections": 8, "push_chunk_bytes":
16777216}, "complete": true, "limit_rate": 1048576, "pinned": "oci:/srv/app:1@sha256:%s",
"opener": "lamina.serve.service.spec:open_reference", "extra": {}}""" % (b"1" * 64)


def test_it_survives_being_sent() -> None:
    assert OpenRequest.from_json(json.loads(json.dumps(FULL.to_json()))) == FULL
    default = OpenRequest(reference="x")
    same = [
        name for name in FULL.__struct_fields__ if getattr(FULL, name) == getattr(default, name)
    ]
    assert not same, "every field of the example says something"


def test_an_older_process_is_told_what_it_knows() -> None:
    """A field that nobody uses must not keep a service of an earlier version from opening."""
    assert OpenRequest(reference="x").to_json() == {"reference": "x"}


def test_what_only_a_later_version_asks_is_refused() -> None:
    with pytest.raises(UsageError, match="two_signatures"):
        OpenRequest.from_json({"reference": "x", "two_signatures": True})
    with pytest.raises(UsageError, match="index"):
        OpenRequest.from_json({"reference": "x", "index": "nevr"})


def test_secrets_are_not_shown() -> None:
    assert "tea" not in repr(FULL)
    assert "secret" not in f"{MountSpec(image=FULL, mountpoint='/mnt')}"
    assert FULL.has_keys
    assert FULL.has_secrets
    password = OpenRequest(reference="x", client=ClientOptions(password="p"))
    assert password.has_secrets
    assert not password.has_keys


def test_for_another_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LAMINA_STORE", "store")
    monkeypatch.setenv("LAMINA_STORE_BUDGET", "3G")
    reader, writer = os.pipe()
    os.write(writer, b"tea\n")
    os.close(writer)
    request = OpenRequest(
        reference="oci:images:app",
        decryption_keys=(f"key.pem:fd={reader}",),
        key_providers="providers.json",
        key_broker=KeyBroker(url="https://broker:1", init_data_file="init.toml"),
        policy="policy.json",
        client=ClientOptions(ca_file="ca.crt", authfile="auth.json", hosts_dirs=("certs.d",)),
        sources=("oci:cache", "docker://peer:5000/app"),
        blob_dirs=("blobs",),
    )
    told = for_another_process(request)
    os.close(reader)
    assert told == OpenRequest(
        reference=f"oci:{tmp_path}/images:app",
        decryption_keys=(f"{tmp_path}/key.pem:pass=tea",),
        key_providers=f"{tmp_path}/providers.json",
        key_broker=KeyBroker(url="https://broker:1", init_data_file=f"{tmp_path}/init.toml"),
        policy=f"{tmp_path}/policy.json",
        client=ClientOptions(
            ca_file=f"{tmp_path}/ca.crt",
            authfile=f"{tmp_path}/auth.json",
            hosts_dirs=(f"{tmp_path}/certs.d",),
        ),
        store=f"{tmp_path}/store",
        store_budget="3G",
        sources=(f"oci:{tmp_path}/cache", "docker://peer:5000/app"),
        blob_dirs=(f"{tmp_path}/blobs",),
    )
    assert for_another_process(told) == told


def test_another_process_need_not_know_where_mirrors_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAMINA_HOSTS_DIR", f"{tmp_path}/one:{tmp_path}/two")
    told = for_another_process(OpenRequest(reference="docker://peer:5000/app"))
    assert told.client.hosts_dirs == (f"{tmp_path}/one", f"{tmp_path}/two")
    monkeypatch.delenv("LAMINA_HOSTS_DIR")
    told = for_another_process(OpenRequest(reference="docker://peer:5000/app"))
    assert told.client.hosts_dirs == ()
    monkeypatch.setenv("LAMINA_HOSTS_DIR", "elsewhere")
    assert for_another_process(told) == told


def test_keywords_of_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCICRYPT_KEYPROVIDER_CONFIG", "providers.json")
    store = NodeStore(tmp_path, budget=1 << 20)
    reference = parse_reference("registry.example/app:1")
    request = request_of(reference, store=store, decryption_keys="key.pem", policy=tmp_path / "p")
    assert request == OpenRequest(
        reference="docker://registry.example/app:1",
        decryption_keys=("key.pem",),
        key_providers="providers.json",
        policy=f"{tmp_path}/p",
        store=str(tmp_path),
        store_budget=1 << 20,
    )
    of_client = set(inspect.signature(client_options).parameters)
    keywords = set(inspect.signature(lamina.open).parameters)
    assert keywords == set(inspect.signature(request_of).parameters) | of_client


def test_a_mount_of_the_service_before() -> None:
    spec = describe_spec(json.loads(BEFORE))
    assert spec.image == OpenRequest(
        reference="oci:/srv/app:1",
        pinned="oci:/srv/app:1@sha256:" + "1" * 64,
        platform="linux/amd64",
        decryption_keys=("/k.pem",),
        key_broker=KeyBroker(url="https://broker:1"),
        policy="/p.json",
        store="/var/lib/lamina",
    )
    assert (spec.mountpoint, spec.device, spec.options) == ("/mnt", "fuse-blob", ("suid",))
    assert (spec.complete, spec.limit_rate) == (True, 1 << 20)
    assert msgspec.convert(msgspec.to_builtins(spec), MountSpec) == spec


def test_credentials_are_for_one_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lamina.opening import open_image as pipeline

    seen: dict[str, str | None] = {}

    class Nothing:
        def __init__(self, reference: object) -> None:
            self.reference = reference

        def __enter__(self) -> Nothing:
            return self

        def __exit__(self, *_: object) -> None:
            pass

    def opening(reference: object, *, options: ClientOptions) -> Nothing:
        seen[str(reference)] = options.password
        return Nothing(reference)

    monkeypatch.setattr(pipeline, "open_repository", opening)
    request = OpenRequest(
        reference="docker://one:5000/app:1",
        client=ClientOptions(username="me", password="secret"),
        sources=("docker://one:5000/mirror:1", "docker://two:5000/app:1"),
        store=str(tmp_path),
    )
    with pipeline.begin(request):
        pass
    assert seen == {
        "docker://one:5000/app:1": "secret",
        "docker://one:5000/mirror:1": "secret",
        "docker://two:5000/app:1": None,
    }
    assert msgspec.structs.asdict(request)["client"].password == "secret"
