"""CRI's image service (``runtime.v1.ImageService``) in front of containerd's own.

Every call goes on to containerd as the bytes that it is, and its answer back.  Of a pull the login
is taken, for as long as the image is there: containerd passes none on to a snapshotter.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError

from lamina.containerd.pull_logins import PullLogins, login_of
from lamina.containerd.wire import images_pb2 as wire
from lamina.errors import UsageError

LOG: Final = logging.getLogger("lamina")

SERVICE: Final = "/runtime.v1.ImageService/"
_MESSAGE_BYTES: Final = 16 << 20
"""As much as a kubelet and containerd take."""
_MOST_S: Final = 1e6
OPTIONS: Final = [
    ("grpc.max_receive_message_length", _MESSAGE_BYTES),
    ("grpc.max_send_message_length", _MESSAGE_BYTES),
]


class ImageService(grpc.GenericRpcHandler):  # type: ignore[misc]
    """See the module.  Threads share it."""

    def __init__(self, socket: str, logins: PullLogins) -> None:
        """Ask containerd at a socket."""
        self._channel = grpc.insecure_channel(f"unix:{socket}", options=OPTIONS)
        self._logins = logins

    def close(self) -> None:
        """Close the connection to containerd."""
        self._channel.close()

    def service(self, handler_call_details: Any) -> Any:
        """Return what answers a call of the service, None for others."""
        method = handler_call_details.method
        if not method.startswith(SERVICE):
            return None

        def one(said: bytes, context: Any) -> bytes:
            return self._one(method, said, context)

        return grpc.unary_unary_rpc_method_handler(one)

    def _one(self, method: str, said: bytes, context: Any) -> bytes:
        call = self._channel.unary_unary(method)
        remaining_s = context.time_remaining()
        with self._noting(method, said) as noted:
            future = call.future(
                said,
                # Without a deadline there remains more than fits into one.
                timeout=None if remaining_s is None or remaining_s > _MOST_S else remaining_s,
                metadata=[each for each in context.invocation_metadata() if _goes_on(each.key)],
            )
            if not context.add_callback(future.cancel):
                future.cancel()
            answer = _answer_of(future, context)
            noted(answer)
        return answer

    @contextlib.contextmanager
    def _noting(self, method: str, said: bytes) -> Iterator[Any]:
        """Yield what is told of the answer to a call."""
        name = method.removeprefix(SERVICE)
        with contextlib.ExitStack() as stack:
            try:
                if name == "PullImage":
                    yield self._pull(wire.PullImageRequest.FromString(said), stack)
                    return
                if name == "RemoveImage":
                    image = wire.RemoveImageRequest.FromString(said).image.image
                    yield lambda _: self._logins.forget(image)
                    return
            except DecodeError:
                # containerd says what is wrong with it.
                pass
            yield lambda _: None

    def _pull(self, request: Any, stack: contextlib.ExitStack) -> Any:
        image = request.image.image
        try:
            login = login_of(request.auth, image)
        except UsageError as error:
            LOG.info("no login is taken of a pull: %s", error)
            login = None
        if login is None:
            return lambda _: None
        names = stack.enter_context(self._logins.pulling(image, login))
        return lambda answer: names.append(wire.PullImageResponse.FromString(answer).image_ref)


def _answer_of(future: Any, context: Any) -> bytes:
    """Return what containerd answers, or end the call as it does."""
    try:
        answer: bytes = future.result()
    except grpc.RpcError as error:
        code, text = error.code(), error.details()
    except grpc.FutureCancelledError:
        code, text = grpc.StatusCode.CANCELLED, "the caller did not wait"
    else:
        return answer
    context.abort(code, text)
    raise AssertionError("it has raised")


def _goes_on(key: str) -> bool:
    """Tell whether a field of a call's head is the caller's, and not of its connection."""
    return not key.startswith(("grpc-", ":")) and key not in ("user-agent", "content-type", "te")
