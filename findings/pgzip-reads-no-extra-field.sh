#!/bin/bash
# pgzip and its parent mgzip, which compress and decompress gzip in parallel in place of Python's gzip module, read no member
# whose header has an extra field (RFC 1952, FEXTRA) of others: they find the compressed data in the wrong place, and raise
# zlib's error.  Every member that bgzip writes has such a field, and the last one of every eStargz layer.
#
# Needs: python3 with venv.  Seen on 2026-11-30 with pgzip 0.4.0 and mgzip 0.2.5 (PyPI), Python 3.11:
#   no field:           gzip b'hello' pgzip b'hello' mgzip b'hello'
#   field of bgzip:     gzip b'hello' pgzip error mgzip error
#   field of eStargz:   gzip b'hello' pgzip error mgzip error
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet pgzip==0.4.0 mgzip==0.2.5 setuptools
"$work/venv/bin/python" - "$work/file.gz" <<'PY'
import gzip
import struct
import sys
import zlib

import mgzip
import pgzip

path = sys.argv[1]
plain = b"hello"
raw = zlib.compressobj(6, zlib.DEFLATED, -zlib.MAX_WBITS)
data = raw.compress(plain) + raw.flush()
end = data + struct.pack("<II", zlib.crc32(plain), len(plain))


def member(extra=b""):
    head = struct.pack("<2sBBIBB", b"\x1f\x8b", 8, 4 if extra else 0, 0, 0, 255)
    return head + (struct.pack("<H", len(extra)) + extra if extra else b"") + end


def read(module):
    try:
        with module.open(path, "rb") as file:
            return repr(file.read())
    except zlib.error:
        return "error"


bgzip = struct.pack("<2sHH", b"BC", 2, 18 + len(end) - 1)  # the length of the member less one
estargz = struct.pack("<2sH", b"SG", 22) + b"%016x" % 0 + b"STARGZ"
rows = {
    "no field": (member(), "b'hello'"),
    "field of bgzip": (member(bgzip), "error"),
    "field of eStargz": (member(estargz), "error"),
}
for name, (data, expected) in rows.items():
    with open(path, "wb") as file:
        file.write(data)
    seen = [read(module) for module in (gzip, pgzip, mgzip)]
    print(f"{name + ':':19} gzip {seen[0]} pgzip {seen[1]} mgzip {seen[2]}")
    assert seen == ["b'hello'", expected, expected], "this has changed"
PY
