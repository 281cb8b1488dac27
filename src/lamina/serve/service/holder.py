"""The process that sleeps, has everything, and starts the others again."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from functools import partial
from typing import Final

from lamina.linux.process import OOM_SCORE_ADJ_MIN, set_name, set_oom_score
from lamina.serve.service.channel import Channel, ChannelError, Message
from lamina.serve.service.manager import notify, remove_mount, store_mount
from lamina.serve.service.respawn import Respawn, reap
from lamina.serve.service.state import ServiceState, fork_as
from lamina.serve.service.supervisor import supervise

LOG: Final = logging.getLogger("lamina")


def hold(state: ServiceState, channel: Channel | None = None) -> None:
    """Be the holder, of a supervisor that is there or of a new one; return when it says goodbye."""
    set_name("lamina-keeper")
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
    except ChannelError as error:
        # The supervisor forks another one, which has all that this one would have been sent.
        LOG.error("the holder ends, to be replaced: %s", error)  # noqa: TRY400 - one clear line
    finally:
        if channel is not None:
            channel.close()


def _start_supervisor(state: ServiceState) -> Channel:
    ours, theirs = Channel.pair()
    try:
        state.supervisor_pid = fork_as(partial(supervise, state, theirs))
    except BaseException:
        ours.close()
        raise
    theirs.close()
    return ours


def _listen(state: ServiceState, channel: Channel) -> bool:
    """Note what the supervisor says; True after its goodbye, False when it is gone."""
    while (message := channel.receive()) is not None:
        if message.body["op"] == "bye":
            return True
        _note(state, message)
        channel.say("noted")
    return False


def _note(state: ServiceState, message: Message) -> None:
    body, fds = message
    if body["op"] == "keep":
        number = body["mount"]["number"]
        known = number in state.mounts
        state.keep(body["mount"], fds)
        store_mount(state.mounts[number], known=known)
    elif body["op"] == "drop":
        if body["number"] in state.mounts:
            remove_mount(state.mounts[body["number"]])
        state.drop(body["number"])
    elif body["op"] == "worker":
        state.note_worker(fds[0])
    elif body["op"] == "supervisor":
        state.supervisor_pid = body["pid"]


def _pass_on(state: ServiceState) -> None:
    if state.supervisor_pid:
        with contextlib.suppress(ProcessLookupError):
            os.kill(state.supervisor_pid, signal.SIGTERM)
