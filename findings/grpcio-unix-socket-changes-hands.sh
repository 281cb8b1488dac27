#!/bin/bash
# A gRPC server of Python that binds `unix:PATH` takes PATH from a server that lives there already, without an error in
# either.  When the first one stops later, it removes PATH, which is the second one's by then: that server goes on, says
# nothing, and cannot be reached by anybody.  So an upgrade that starts the new process before it stops the old one ends with
# no service.  Who hands over must bind a name of its own and rename it, or pass the listening descriptor.
#
# Needs: python3 with venv.  Seen on 2026-11-30 with grpcio 1.76.0 (wheel), Python 3.11, Linux 6.18:
#   first binds: 1; answer: first; second binds: 1; answer: second; first stops; socket there: False; answer: UNAVAILABLE
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet grpcio==1.76.0
cat >"$work/ask.py" <<'PY'
import sys

import grpc

try:
    print(grpc.insecure_channel("unix:" + sys.argv[1]).unary_unary("/t.T/Who")(b"", timeout=5).decode())
except grpc.RpcError as error:
    print(error.code().name)
PY
"$work/venv/bin/python" - "$work" <<'PY'
import os
import subprocess
import sys
import time
from concurrent import futures

import grpc

path = sys.argv[1] + "/socket"


def serve(name):
    server = grpc.server(futures.ThreadPoolExecutor(2))
    who = grpc.unary_unary_rpc_method_handler(lambda request, context: name.encode())
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.T", {"Who": who}),))
    said.append(f"{name} binds: {server.add_insecure_port('unix:' + path)}")
    server.start()
    return server


def ask():
    answer = subprocess.run([sys.executable, sys.argv[1] + "/ask.py", path], capture_output=True, text=True, check=True)
    said.append(f"answer: {answer.stdout.strip()}")


said = []
first = serve("first")
ask()
second = serve("second")
ask()
first.stop(0).wait()
said.append("first stops")
limit = time.monotonic() + 10
while os.path.exists(path) and time.monotonic() < limit:
    time.sleep(0.05)
said.append(f"socket there: {os.path.exists(path)}")
ask()
second.stop(0).wait()
seen = "; ".join(said)
print(seen)
assert seen == (
    "first binds: 1; answer: first; second binds: 1; answer: second; first stops; socket there: False; answer: UNAVAILABLE"
), "this has changed"
PY
