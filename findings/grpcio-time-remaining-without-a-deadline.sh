#!/bin/bash
# `ServicerContext.time_remaining()` of grpcio is documented to be None for a call without a deadline.  It is a number, about
# 292 years of seconds.  A proxy that passes it on as the `timeout` of its own call, as one does for a deadline, makes a time
# that does not fit: the call ends with DEADLINE_EXCEEDED at once, before anybody is asked.
#
# Needs: python3 with venv.  Seen on 2026-11-30 with grpcio 1.76.0 (wheel), Python 3.11:
#   remaining: a float above 9e9; passed on as it is: DEADLINE_EXCEEDED in less than a second; bounded: answered
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet grpcio==1.76.0
"$work/venv/bin/python" - "$work/socket" <<'PY'
import sys
import time
from concurrent import futures

import grpc

seen = []


def answer(request, context):
    seen.append(context.time_remaining())
    return b"answered"


server = grpc.server(futures.ThreadPoolExecutor(2))
handler = {"Ask": grpc.unary_unary_rpc_method_handler(answer)}
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.T", handler),))
server.add_insecure_port("unix:" + sys.argv[1])
server.start()
ask = grpc.insecure_channel("unix:" + sys.argv[1]).unary_unary("/t.T/Ask")
ask(b"")
remaining = seen[0]


def passed_on(timeout):
    begin = time.monotonic()
    try:
        said = ask(b"", timeout=timeout).decode()
    except grpc.RpcError as error:
        said = f"{error.code().name} in {'less' if time.monotonic() - begin < 1 else 'more'} than a second"
    return said


kind = f"a {type(remaining).__name__} above 9e9" if remaining is not None and remaining > 9e9 else repr(remaining)
line = f"remaining: {kind}; passed on as it is: {passed_on(remaining)}; bounded: {passed_on(min(remaining, 60))}"
server.stop(0).wait()
print(line)
assert line == (
    "remaining: a float above 9e9; passed on as it is: DEADLINE_EXCEEDED in less than a second; bounded: answered"
), "this has changed"
PY
