"""From the init-data of a guest to what an image is opened with: attest, then fetch what the
anchors name.

Nothing that the host says decides anything: it names the image, and the place of a cache that is
believed in nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from lamina.errors import FetchError, UsageError
from lamina.guest.anchors import Anchors, parse_anchors
from lamina.guest.policy_keys import with_keys_inside
from lamina.guest.private_storage import refuse_visible_storage, refuse_visible_swap
from lamina.http.client_options import ClientOptions
from lamina.http.url import parse_url
from lamina.oci.reference import parse_reference
from lamina.opening.request import KeyBroker, OpenRequest
from lamina.store.files import make_private_directory, write_atomically
from lamina.trust.broker.client import KbsClient
from lamina.trust.broker.evidence import SAMPLE
from lamina.trust.broker.init_data import InitData, read_init_data
from lamina.trust.broker.kbs_packet import ResourcePath
from lamina.trust.broker.provider import make_provider

EVIDENCE: Final = ("tsm", SAMPLE)


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestSettings:
    """What is not measured: where the guest works, by which evidence it proves itself, and where
    bytes come from.  ``cache`` is the address of a cache of the host, ``cache_only`` that nobody
    else is asked.  ``blob_dirs`` are folders of blobs that the host shares, asked before.
    """

    work: Path
    init_data: str
    evidence: str = "tsm"
    cache: str | None = None
    cache_only: bool = False
    blob_dirs: tuple[str, ...] = ()


def sample_measurement(init_data: InitData) -> str:
    """Return what sample evidence has for a measurement, so that a rule of a broker for tests can
    stand for what a CPU proves: the digest of the init-data.
    """
    return init_data.digest().hex()


def guest_request(reference: str, settings: GuestSettings) -> OpenRequest:
    """Return the request to open an image in this guest.

    The guest attests itself for it, and gets the policy and the credentials that the anchors name.
    Raises StoreError for a work folder, or swap, that others can read, TrustError, FetchError,
    FormatError, NotFoundError, UsageError.
    """
    where = parse_reference(reference)
    if not where.is_remote:
        raise UsageError(f"{reference[:200]} is no image of a registry")
    cache = None if settings.cache is None else _address(settings.cache)
    work, anchors, broker = _begun(settings)
    with _client(broker) as client:
        policy, authfile = _fetched(anchors, client, work)
    authorities = "\n".join(anchors.registry_authorities).encode()
    return OpenRequest(
        reference=reference,
        # What the host's registry says of attached indexes is covered by no signature.
        index="never",
        key_broker=broker,
        policy=policy,
        client=ClientOptions(
            ca_file=_file(work, "registries.crt", authorities) if authorities else None,
            # No other: the guest's file system is no place for credentials.
            authfile=authfile,
            hosts_dirs=_hosts_dirs(where.registry, cache, work, alone=settings.cache_only),
            # The host says where its cache is: by plain HTTP it may say that a registry is.
            plain_credentials=False,
        ),
        store=os.fspath(work / "store"),
        blob_dirs=settings.blob_dirs,
    )


@contextmanager
def guest_broker(settings: GuestSettings) -> Iterator[KbsClient]:
    """Give the client of the broker that the anchors name.  Raises as :func:`guest_request`."""
    with _client(_begun(settings)[2]) as client:
        yield client


def _begun(settings: GuestSettings) -> tuple[Path, Anchors, KeyBroker]:
    work = _private_folder(settings)
    init_data = read_init_data(settings.init_data)
    anchors = parse_anchors(init_data)
    broker = KeyBroker(
        url=anchors.broker_url,
        ca_file=_file(work, "broker.crt", anchors.broker_authority.encode()),
        evidence=settings.evidence,
        measurement=sample_measurement(init_data),
        init_data_file=_file(work, "initdata.toml", init_data.text.encode()),
    )
    return work, anchors, broker


@contextmanager
def _client(broker: KeyBroker) -> Iterator[KbsClient]:
    client = make_provider(**msgspec.structs.asdict(broker)).client
    try:
        yield client
    finally:
        client.close()


def _fetched(anchors: Anchors, client: KbsClient, work: Path) -> tuple[str, str]:
    """Return the files of the policy and of the credentials."""

    def fetch(resource: ResourcePath) -> bytes:
        with client.fetch(resource) as secret:
            return secret.reveal()

    policy = anchors.policy
    text = fetch(policy) if isinstance(policy, ResourcePath) else policy.encode()
    policy_file = _file(work, "policy.json", with_keys_inside(text, fetch))
    resource = anchors.credentials
    credentials = b'{"auths":{}}' if resource is None else fetch(resource)
    return policy_file, _file(work, "auth.json", credentials)


def _private_folder(settings: GuestSettings) -> Path:
    work = settings.work
    make_private_directory(work)
    refuse_visible_storage(work)
    if settings.evidence != SAMPLE:
        refuse_visible_swap()
    return work.resolve()


def _address(url: str) -> str:
    """Return the address of a cache.  Raises UsageError."""
    try:
        origin = parse_url(url).origin
    except FetchError:
        raise UsageError(
            f"{url[:200]!r} is no address of a cache", hint="--cache http://HOST:PORT"
        ) from None
    return f"{origin.scheme}://{origin.authority}"


def _hosts_dirs(registry: str, cache: str | None, work: Path, *, alone: bool) -> tuple[str, ...]:
    """Return the folder with the file that names the cache as a mirror, if there is one; *alone*:
    the registry itself is asked for nothing.
    """
    if cache is None:
        return ()
    # A text of JSON is one of TOML.
    name = json.dumps(cache)
    text = f'[host.{name}]\ncapabilities = ["pull", "resolve", "referrers"]\n'
    if alone:
        text = f"server = {name}\n"
    folder = work / "hosts" / registry
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _file(folder, "hosts.toml", text.encode())
    return (os.fspath(work / "hosts"),)


def _file(folder: Path, name: str, data: bytes) -> str:
    """Write a file for this user only; whoever reads it meanwhile has the old one, or this one."""
    path = folder / name
    write_atomically(path, data)
    return os.fspath(path)
