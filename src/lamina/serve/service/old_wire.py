"""The wire of services and clients without a protocol number, for the hand-over from them.

Each message was one packet of JSON, ``{"op": ..., ...}``, with its descriptors, over the same
socket.  Needed as long as such a service may be running when Lamina is upgraded: it can go with the
second release after 0.1, whose users come from a service that has a number.  Four things are left
of it: a successor takes over from an old supervisor (:func:`take_over`) or from what an old process
wrote down (:func:`describe_mount`, :func:`convert_state`), ``lamina service upgrade`` asks an old
supervisor (:func:`ask_for_upgrade`), and an old client is told why it is not served
(:func:`refuse`).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from typing import Any, Final

import msgspec

from lamina.errors import FormatError, KernelError
from lamina.opening.request import OpenRequest
from lamina.serve.error_wire import encode_error
from lamina.serve.service.channel import Channel
from lamina.serve.service.handover import MountDescription
from lamina.serve.service.spec import MountSpec

_OPENER: Final = "lamina.serve.service.spec:open_reference"
_NOTED: Final = b'{"op": "noted"}'


def describe_mount(fields: dict[str, Any]) -> MountDescription:
    """Return a mount as an old process described it.  Raises FormatError."""
    try:
        spec = msgspec.to_builtins(describe_spec(fields.get("spec") or {}))
        return msgspec.convert({**fields, "spec": spec}, MountDescription)
    except msgspec.ValidationError as error:
        raise FormatError(f"this is no mount of the mount service: {error}") from error


def describe_spec(fields: dict[str, Any]) -> MountSpec:
    """Return what an old process was to mount, whose image was no part of its own.

    Raises FormatError, and msgspec.ValidationError.
    """
    rest = dict(fields)
    # A way to open images that only tests had.
    if rest.pop("opener", _OPENER) != _OPENER or rest.pop("extra", None):
        raise FormatError(f"a mount of {rest.get('reference')!r} cannot be opened any more")
    names = OpenRequest.__struct_fields__
    image = {name: rest.pop(name) for name in list(rest) if name in names}
    return msgspec.convert({**rest, "image": image}, MountSpec)


def convert_state(document: dict[str, Any]) -> dict[str, Any]:
    """Return the state that an old worker wrote down as it is written now."""
    mounts = [
        {**each, "mount": msgspec.to_builtins(describe_mount(each["mount"]))}
        for each in document["mounts"]
    ]
    return {**document, "mounts": mounts}


def take_over(
    channel: Channel,
    first: bytes,
    fds: list[int],
    steps: dict[str, Callable[[dict[str, Any], list[int]], None]],
) -> None:
    """Take what an old supervisor tells until it ends, of which ``first`` has come already: each
    step is called with the fields and descriptors of its message, and answered.

    Raises FormatError and what the steps raise; then the old service goes on.
    """
    packet = first
    while packet:
        try:
            fields = json.loads(packet)
            step = steps.get(fields["op"])
        except (ValueError, RecursionError, KeyError, TypeError) as error:
            raise FormatError("the old mount service says what is no message") from error
        if step is not None:
            step(fields, fds)
        with contextlib.suppress(OSError):
            channel.send_packet(_NOTED)
        packet, fds = channel.read_packet()


def ask_for_upgrade(channel: Channel) -> bool:
    """Ask an old service to let the code as it is now take over; return whether it has."""
    with contextlib.suppress(ConnectionError):
        channel.send_packet(b'{"op": "upgrade"}')
    answer, _ = channel.read_packet()
    # The old supervisor ends without an answer, which is the answer.
    return not answer


def refuse(channel: Channel) -> None:
    """Tell an old client in its words that it is too old."""
    error = KernelError(
        "this lamina is older than the mount service that runs",
        hint="use the newer one, or end the service by `lamina umount --all`",
    )
    words = {"op": "failed", "error": encode_error(error).decode()}
    with contextlib.suppress(OSError):
        channel.send_packet(json.dumps(words).encode())
