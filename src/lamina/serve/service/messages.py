"""What the processes of the service and its clients say to each other, one struct a message.

A message names itself in the field ``op``.  ``number`` is that of the mount it is about: the
supervisor gives it, so a client leaves it empty.  Descriptors that come along are named in the text
of a message, in their order.

:data:`PROTOCOL` changes with every change of what is here that an older process would misread.  A
new field with a default is none: who does not know it passes over it.
"""

from __future__ import annotations

import json
from typing import Final, TypeAlias, get_args

import msgspec

from lamina.errors import KernelError
from lamina.oci.manifest import RuntimeConfig
from lamina.serve.error_wire import ReportedError
from lamina.serve.mount_records import MountRecord
from lamina.serve.service.handover import MountDescription
from lamina.serve.service.spec import MountSpec
from lamina.version import VERSION

PROTOCOL: Final = 2
"""1 is the wire without numbers (:mod:`lamina.serve.service.old_wire`)."""

PAGE_MOUNTS: Final = 250
"""How many mounts one :class:`StatusPage` tells of: the supervisor never waits for a reader."""


class UnknownMessageError(KernelError):
    """What was received is a whole frame, but no message that is known here."""


class _Message(msgspec.Struct, frozen=True, kw_only=True, tag_field="op"):
    pass


# Anybody, first.


class Hello(_Message, frozen=True, kw_only=True, tag="hello"):
    """The first message each way between processes that may be of different versions: of a client,
    and of a supervisor to its successor.  It is understood for all time.
    """

    protocol: int = PROTOCOL
    version: str = VERSION


class Failed(_Message, frozen=True, kw_only=True, tag="failed"):
    """What was asked for cannot be done."""

    error: ReportedError
    number: str = ""


# A client, and with a number the supervisor to the worker.


class Open(_Message, frozen=True, kw_only=True, tag="open"):
    """Open an image to be mounted; answered by :class:`Opened`.  A descriptor that comes along is
    the end of a pipe for :func:`lamina.serve.toucher.follow_start`.
    """

    spec: MountSpec
    number: str = ""


class Hold(_Message, frozen=True, kw_only=True, tag="hold"):
    """Keep all of an image that is complete until the superblock of ``watch`` is gone; answered by
    :class:`Held`.
    """

    watch: tuple[str, ...]
    number: str = ""


class Mounted(_Message, frozen=True, kw_only=True, tag="mounted"):
    """The mount has its place; ``watch`` are the files in sysfs that live as long as its
    superblock.  With ``shares`` it is a further mount of a superblock that is answered for already.
    Answered by :class:`Recorded`.
    """

    record: MountRecord
    watch: tuple[str, ...]
    shares: bool = False
    number: str = ""


class Status(_Message, frozen=True, kw_only=True, tag="status"):
    """Tell how much is here of the mounts on some folders, or of all, from behind ``after`` on in
    their order; answered by :class:`StatusPage`.
    """

    mountpoints: tuple[str, ...] | None = None
    after: str = ""
    number: str = ""


# A client only.


class ServeMount(_Message, frozen=True, kw_only=True, tag="serve-mount"):
    """Answer for the mount that the client makes, with the descriptors of ``names``; answered by
    :class:`Serving`.
    """

    device: str
    names: tuple[str, ...]
    connection: int = 0


class Upgrade(_Message, frozen=True, kw_only=True, tag="upgrade"):
    """Let the code as it is now take over; answered by the end of the supervisor, or by
    :class:`NotUpgraded`.
    """


# The worker, and the supervisor to a client.


class Opened(_Message, frozen=True, kw_only=True, tag="opened"):
    """What there is to mount.  ``pinned`` is the reference with its digest; ``complete`` says of
    each of ``blobs``, which are paths, whether the kernel can read it by itself; ``note`` is what
    the user should be told; ``blob_ids`` is what log lines call the blobs; ``runtime`` is what a
    container of the image runs.
    """

    number: str
    image: str
    digest: str
    pinned: str | None
    bootstrap: str
    blobs: tuple[str, ...] = ()
    complete: tuple[bool, ...] = ()
    note: str | None = None
    blob_ids: tuple[str, ...] = ()
    runtime: RuntimeConfig = msgspec.field(default_factory=RuntimeConfig)


class Serving(_Message, frozen=True, kw_only=True, tag="serving"):
    """The mount is answered for."""

    number: str


class Held(_Message, frozen=True, kw_only=True, tag="held"):
    """The image stays complete."""

    number: str


class Recorded(_Message, frozen=True, kw_only=True, tag="recorded"):
    """The mount is known to the service, under this record."""

    record: MountRecord


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """What an image cost since this worker opened it (:mod:`lamina.content.statistics`), and how
    long readers of any image waited so far.
    """

    requests: int = 0
    fetched_bytes: int = 0
    ahead_bytes: int = 0
    copied_bytes: int = 0
    decoded_bytes: int = 0
    waited_s: float = 0.0


class Coverage(msgspec.Struct, frozen=True, kw_only=True):
    """How much of a mount's image is here, in bytes of its blobs, decompressed, and what that cost;
    None if the image is not open, because nobody has read of it since another worker had it.
    """

    ready_bytes: int | None = None
    total_bytes: int | None = None
    cost: Cost | None = None


class StatusPage(_Message, frozen=True, kw_only=True, tag="status-page"):
    """Mounts by folder, in their order; ``more`` if others come behind the last of them."""

    number: str
    mounts: dict[str, Coverage]
    more: bool = False
    pids: dict[str, int] = {}


class NotUpgraded(_Message, frozen=True, kw_only=True, tag="not-upgraded"):
    """The new code did not start, and the old goes on."""


# The supervisor and the worker.


class Begin(_Message, frozen=True, kw_only=True, tag="begin"):
    """Serve: the holder knows of this worker."""


class Serve(_Message, frozen=True, kw_only=True, tag="serve"):
    """Answer for a mount, whose descriptors come along; answered by :class:`Serving`."""

    mount: MountDescription


class Drop(_Message, frozen=True, kw_only=True, tag="drop"):
    """Let go of a mount; to the holder as well."""

    number: str


class Drain(_Message, frozen=True, kw_only=True, tag="drain"):
    """Answer what has begun, and end."""


class Resident(_Message, frozen=True, kw_only=True, tag="resident"):
    """A mount needs nobody any more."""

    number: str


class Lost(_Message, frozen=True, kw_only=True, tag="lost"):
    """The reads of a mount that the last worker had begun cannot be answered."""

    number: str


# The supervisor and the holder, or its successor.


class Keep(_Message, frozen=True, kw_only=True, tag="keep"):
    """Keep a mount with the descriptors that come along, or what has changed of one."""

    mount: MountDescription


class NoteWorker(_Message, frozen=True, kw_only=True, tag="note-worker"):
    """The pidfd that comes along is the worker's."""


class NoteSupervisor(_Message, frozen=True, kw_only=True, tag="note-supervisor"):
    """The pid is the supervisor's."""

    pid: int


class Succeed(_Message, frozen=True, kw_only=True, tag="succeed"):
    """Be the next service; the listener and the pidfd of the worker come along."""

    lingering: bool


class Ready(_Message, frozen=True, kw_only=True, tag="ready?"):
    """All is told: say when the service can change hands."""


class Noted(_Message, frozen=True, kw_only=True, tag="noted"):
    """The answer to each of these."""


class Bye(_Message, frozen=True, kw_only=True, tag="bye"):
    """The service ends."""


Message: TypeAlias = (
    Hello
    | Failed
    | Open
    | Hold
    | Mounted
    | Status
    | ServeMount
    | Upgrade
    | Opened
    | Serving
    | Held
    | Recorded
    | StatusPage
    | NotUpgraded
    | Begin
    | Serve
    | Drop
    | Drain
    | Resident
    | Lost
    | Keep
    | NoteWorker
    | NoteSupervisor
    | Succeed
    | Ready
    | Noted
    | Bye
)

_KNOWN: Final = frozenset(kind.__struct_config__.tag for kind in get_args(Message))


def encode(message: Message) -> bytes:
    """Return a message as JSON; names that are no UTF-8 keep their surrogates, escaped."""
    return json.dumps(msgspec.to_builtins(message)).encode()


def decode(data: bytes | bytearray) -> Message:
    """Return the message that :func:`encode` made.

    Raises UnknownMessageError, with the name of a message that is not known, or what is wrong.
    """
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UnknownMessageError(
            "the other end says what is no message of the mount service"
        ) from error
    op = fields.get("op") if isinstance(fields, dict) else None
    if not isinstance(op, str) or op not in _KNOWN:
        raise UnknownMessageError(f"the mount service does not know {op!r}")
    try:
        message: Message = msgspec.convert(fields, Message)
    except (msgspec.ValidationError, RecursionError) as error:
        what = f"the mount service does not understand {op!r}: {error}"
        raise UnknownMessageError(what) from error
    return message
