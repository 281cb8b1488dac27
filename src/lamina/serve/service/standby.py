"""The process that sleeps, has everything, and starts the others again."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from functools import partial
from typing import Final

from lamina.errors import FormatError
from lamina.linux.process import OOM_SCORE_ADJ_MIN, set_name, set_oom_score
from lamina.serve.error_wire import ReportedError
from lamina.serve.service.channel import Channel, ChannelError
from lamina.serve.service.messages import (
    Bye,
    Drop,
    Failed,
    Keep,
    Message,
    Noted,
    NoteSupervisor,
    NoteWorker,
    UnknownMessageError,
)
from lamina.serve.service.respawn import Respawn, reap
from lamina.serve.service.state import ServiceState, fork_role
from lamina.serve.service.supervisor import supervise
from lamina.serve.service.systemd_fdstore import notify, remove_mount, store_mount

LOG: Final = logging.getLogger("lamina")


def stand_by(state: ServiceState, channel: Channel | None = None) -> None:
    """Be the holder, of a supervisor that is there or of a new one; return when it says goodbye."""
    set_name("lamina-standby")
    set_oom_score(OOM_SCORE_ADJ_MIN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: _pass_on(state))
    state.holder_pid = os.getpid()
    notify(f"READY=1\nMAINPID={os.getpid()}")
    respawn = Respawn()
    try:
        while True:
            respawn.begin()
            if channel is None:
                channel = _start_supervisor(state)
            if _listen(state, channel):
                return
            channel.close()
            channel = None
            LOG.warning("the supervisor is gone, another one takes over")
            time.sleep(respawn.pause_s(reap(state.supervisor_pid)))
    except (ChannelError, FormatError) as error:
        # The supervisor forks another one, which has all that this one would have been sent.
        LOG.error("the holder ends, to be replaced: %s", error)  # noqa: TRY400 - one clear line
    finally:
        if channel is not None:
            channel.close()


def _start_supervisor(state: ServiceState) -> Channel:
    ours, theirs = Channel.pair()
    try:
        state.supervisor_pid = fork_role(partial(supervise, state, theirs))
    except BaseException:
        ours.close()
        raise
    theirs.close()
    return ours


def _listen(state: ServiceState, channel: Channel) -> bool:
    """Note what the supervisor says; True after its goodbye, False when it is gone."""
    while True:
        answer: Message = Noted()
        try:
            received = channel.receive()
            if received is None:
                return False
            if isinstance(received.message, Bye):
                return True
            _note(state, *received)
        except UnknownMessageError as error:
            # Answered, because the supervisor waits.
            LOG.error("the holder is told something odd: %s", error)  # noqa: TRY400 - clear
            answer = Failed(error=ReportedError.of(error))
        channel.tell(answer)


def _note(state: ServiceState, message: Message, fds: list[int]) -> None:
    match message:
        case Keep(mount=described):
            known = described.number in state.mounts
            state.keep(described, fds)
            store_mount(state.mounts[described.number], known=known)
        case Drop(number=number):
            if number in state.mounts:
                remove_mount(state.mounts[number])
            state.drop(number)
        case NoteWorker():
            state.note_worker(fds[0])
        case NoteSupervisor(pid=pid):
            state.supervisor_pid = pid
        case _:
            raise UnknownMessageError(f"the holder does not know {message.__struct_config__.tag!r}")


def _pass_on(state: ServiceState) -> None:
    if state.supervisor_pid:
        with contextlib.suppress(ProcessLookupError):
            os.kill(state.supervisor_pid, signal.SIGTERM)
