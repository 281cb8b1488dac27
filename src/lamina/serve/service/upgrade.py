"""Handing the service to a fresh interpreter, which has the code as it is now."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from typing import Final

from lamina.serve.service.channel import Channel, ChannelError
from lamina.serve.service.state import ServiceState

LOG: Final = logging.getLogger("lamina")
START_S: Final = 20.0


def hand_over(state: ServiceState) -> bool:
    """Start a successor and give it all; it waits for the end of this service.

    Serving goes on meanwhile.  Return False, and nothing has changed, if it does not start.
    """
    ours, theirs = Channel.pair()
    command = [sys.executable, "-m", "lamina.serve.service", "--successor", str(theirs.fileno())]
    successor = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, pass_fds=(theirs.fileno(),), start_new_session=True
    )
    theirs.close()
    ours.settimeout(START_S)
    # Its end is seen by the channel; as a child it is waited for with the others.
    successor.returncode = 0
    try:
        fds = [state.listener.fileno(), os.dup(state.worker_pidfd)]
        told = ours.ask("state", fds, lingering=state.lingering)
        os.close(fds[1])
        for mount in state.mounts.values():
            told = told and ours.ask("keep", list(mount.fds.values()), mount=mount.encode())
        told = told and ours.ask("ready?")
    except (OSError, ChannelError) as error:
        LOG.error("the service cannot be upgraded: %s", error)  # noqa: TRY400 - one clear line
        told = None
    if told is None:
        LOG.error("the service cannot be upgraded: its successor did not start")
        ours.close()
        return False
    # Left open until this process ends, which is what the successor waits for.
    _held.append(ours)
    return True


_held: Final[list[Channel]] = []
