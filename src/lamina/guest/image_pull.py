"""The services of the hub for a guest with these settings."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from typing import Final

import msgspec

from lamina.errors import Error, FetchError, FormatError, NotFoundError, TrustError, UsageError
from lamina.guest.agent import GuestSettings, guest_broker
from lamina.guest.bundle import PullOrder, PullResult
from lamina.guest.hub import Handler
from lamina.posix.own_program import own_program
from lamina.trust.broker.kbs_packet import parse_resource
from lamina.wire import ttrpc

_KINDS: Final = {
    kind.exit_code: kind
    for kind in (UsageError, FormatError, FetchError, NotFoundError, TrustError)
}
_PREFIX: Final = "kbs:///"


def handlers(settings: GuestSettings) -> Mapping[tuple[str, str], Handler]:
    """Return what answers for this guest."""

    def pull_image(payload: bytes) -> bytes:
        image, bundle = ttrpc.texts(payload, 1, 2)
        order = PullOrder(image=image, bundle=bundle, settings=settings)
        return ttrpc.encode_bytes(1, _pull(order).encode())

    def get_resource(payload: bytes) -> bytes:
        (path,) = ttrpc.texts(payload, 1)
        resource = parse_resource(path if path.startswith(_PREFIX) else f"{_PREFIX}{path}")
        with guest_broker(settings) as client, client.fetch(resource) as secret:
            return ttrpc.encode_bytes(1, secret.reveal())

    return {
        ("api.ImagePullService", "PullImage"): pull_image,
        ("api.GetResourceService", "GetResource"): get_resource,
    }


def _pull(order: PullOrder) -> str:
    done = subprocess.run(
        own_program("lamina.guest.bundle"),
        input=msgspec.json.encode(order, enc_hook=str),
        stdout=subprocess.PIPE,
        check=False,
    )
    try:
        result = msgspec.json.decode(done.stdout, type=PullResult)
    except msgspec.MsgspecError:
        raise Error(f"the image could not be pulled (exit code {done.returncode})") from None
    if result.error:
        raise _KINDS.get(result.exit_code, Error)(result.error)
    return result.digest
