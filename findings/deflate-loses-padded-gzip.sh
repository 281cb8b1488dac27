#!/bin/bash
# The Python package deflate (0.9.0, libdeflate) takes the last four bytes of what it is given for the length of the content,
# and decompresses one member of that length at most.  So `gzip_decompress` of a gzip file that is padded with zeros, as
# from tapes and block devices, is b'', without an error; an empty member in front (or behind) makes it b'' or cuts it; and
# of several members, as bgzip, pigz -i and eStargz write them, only the first comes.  The gzip module of Python, isal and
# zlib-ng give all of it for each.
#
# Needs: python3 with venv.  Seen on 2026-11-30 with deflate 0.9.0, isal 1.9.1 and zlib-ng 1.1.0 (wheels), Python 3.11:
#   hello:          deflate b'hello' others b'hello'
#   padded:         deflate b'' others b'hello'
#   hello, world:   deflate b'hello' others b'helloworld'
#   empty, hello:   deflate b'' others b'hello'
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet deflate==0.9.0 isal==1.9.1 zlib-ng==1.1.0
"$work/venv/bin/python" - <<'PY'
import gzip

import deflate
from isal import igzip
from zlib_ng import gzip_ng

hello, world, empty = (gzip.compress(plain, mtime=0) for plain in (b"hello", b"world", b""))
rows = {
    "hello": (hello, b"hello", b"hello"),
    "padded": (hello + bytes(512), b"", b"hello"),
    "hello, world": (hello + world, b"hello", b"helloworld"),
    "empty, hello": (empty + hello, b"", b"hello"),
}
for name, (data, by_deflate, by_others) in rows.items():
    seen = bytes(deflate.gzip_decompress(data))
    others = {module.decompress(data) for module in (gzip, igzip, gzip_ng)}
    print(f"{name + ':':15} deflate {seen!r} others {' '.join(map(repr, others))}")
    assert (seen, others) == (by_deflate, {by_others}), "this has changed"
PY
