#!/bin/bash
# A zstd stream may begin with a skippable frame (RFC 8878, 3.1.2), which holds no content: tables of contents and marks of
# parallel compressors stand in them.  Of the ways in which the Python package zstandard decompresses such a stream, one is
# right (`stream_reader`, also `copy_stream`), one raises (`decompress`), and two give nothing at all without an error: for
# `decompressobj` and `read_to_iter` the skippable frame is the whole stream.  And `read_across_frames=False` makes
# `stream_reader` no reader of one frame: `read(n)` is short at the end of a frame, and the next call goes on behind it.
#
# Needs: python3 with venv.  Seen on 2026-11-30 with zstandard 0.25.0 (wheel, C backend), Python 3.11:
#   stream_reader: b'hello'; copy_stream: b'hello'; decompress: ZstdError; decompressobj: b'' at its end; read_to_iter: b''
#   two frames, read_across_frames=False: b'hello' b'world'
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet zstandard==0.25.0
"$work/venv/bin/python" - <<'PY'
import io
import struct

import zstandard

new = zstandard.ZstdDecompressor
frame = zstandard.ZstdCompressor().compress
stream = struct.pack("<II", 0x184D2A50, 4) + b"mark" + frame(b"hello")


def copied():
    out = io.BytesIO()
    new().copy_stream(io.BytesIO(stream), out)
    return out.getvalue()


def whole():
    try:
        return new().decompress(stream)
    except zstandard.ZstdError:
        return "ZstdError"


one = new().decompressobj()
by_object = f"{one.decompress(stream)!r}" + " at its end" * one.eof
by_iterator = b"".join(new().read_to_iter(io.BytesIO(stream)))
by_reader = new().stream_reader(io.BytesIO(stream)).read()
first = (
    f"stream_reader: {by_reader!r}; copy_stream: {copied()!r}; decompress: {whole()}; "
    f"decompressobj: {by_object}; read_to_iter: {by_iterator!r}"
)
reader = new().stream_reader(io.BytesIO(frame(b"hello") + frame(b"world")), read_across_frames=False)
second = f"two frames, read_across_frames=False: {reader.read(100)!r} {reader.read(100)!r}"
print(first)
print(second)
assert first == (
    "stream_reader: b'hello'; copy_stream: b'hello'; decompress: ZstdError; decompressobj: b'' at its end; read_to_iter: b''"
), "this has changed"
assert second == "two frames, read_across_frames=False: b'hello' b'world'", "this has changed"
PY
