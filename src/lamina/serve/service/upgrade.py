"""Handing the service to a fresh interpreter, which has the code as it is now."""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Sequence
from typing import Final

from lamina.errors import Error, KernelError
from lamina.serve.service.channel import Channel, OldWireError, close_all
from lamina.serve.service.messages import Failed, Hello, Keep, Message, Ready, Succeed
from lamina.serve.service.program import service_command
from lamina.serve.service.state import ServiceState

LOG: Final = logging.getLogger("lamina")
START_S: Final = 20.0


def hand_over(state: ServiceState) -> bool:
    """Start a successor and give it all; it waits for the end of this service.

    Serving goes on meanwhile.  Return False, and nothing has changed, if it does not start.
    """
    ours, theirs = Channel.pair()
    successor = subprocess.Popen(
        service_command("--successor", theirs.fileno()),
        stdin=subprocess.DEVNULL,
        pass_fds=(theirs.fileno(),),
        start_new_session=True,
    )
    theirs.close()
    ours.settimeout(START_S)
    # Its end is seen by the channel; as a child it is waited for with the others.
    successor.returncode = 0
    try:
        _tell_all(state, ours)
    except (OSError, Error) as error:
        LOG.error("the service cannot be upgraded: %s", error)  # noqa: TRY400 - one clear line
        ours.close()
        return False
    # Left open until this process ends, which is what the successor waits for.
    _held.append(ours)
    return True


def _tell_all(state: ServiceState, channel: Channel) -> None:
    hello = _ask(channel, Hello())
    if not isinstance(hello, Hello):
        raise KernelError("the lamina that is installed now is older than this service")
    worker = os.dup(state.worker_pidfd)
    try:
        _ask(channel, Succeed(lingering=state.lingering), [state.listener.fileno(), worker])
    finally:
        os.close(worker)
    for mount in state.mounts.values():
        _ask(channel, Keep(mount=mount.describe()), list(mount.fds.values()))
    _ask(channel, Ready())


def _ask(channel: Channel, message: Message, fds: Sequence[int] = ()) -> Message:
    try:
        received = channel.ask(message, fds)
    except OldWireError as error:
        close_all(error.fds)
        raise KernelError("the lamina that is installed now is older than this service") from error
    if received is None:
        raise KernelError("its successor did not start")
    close_all(received.fds)
    if isinstance(received.message, Failed):
        raise received.message.error.to_error()
    return received.message


_held: Final[list[Channel]] = []
