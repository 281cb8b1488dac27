#!/bin/bash
# `ZstdCompressor.compress` of the Python package zstandard returns bytes that take the memory of the longest frame that the
# input could have had (ZSTD_compressBound), however short the frame is: the object is made that large, and only its length
# is set afterwards.  `len` and `sys.getsizeof` do not tell.  Whoever keeps many small frames copies them, as by
# `bytes(memoryview(frame))`.
#
# Needs: python3 with venv.  Seen on 2026-11-30 with zstandard 0.25.0 (wheel, C backend), Python 3.11:
#   1000 frames of 32 KiB of zeros, 18 bytes each: 32.1 MiB traced; copied: 0.1 MiB
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet zstandard==0.25.0
"$work/venv/bin/python" - <<'PY'
import tracemalloc

import zstandard

compressor = zstandard.ZstdCompressor(level=3)
plain = bytes(32 << 10)
compressor.compress(plain)


def traced(make):
    tracemalloc.start()
    kept = [make() for _ in range(1000)]
    size_bytes = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return size_bytes, len(kept[0])


whole, length = traced(lambda: compressor.compress(plain))
copied, _ = traced(lambda: bytes(memoryview(compressor.compress(plain))))
print(f"1000 frames of 32 KiB of zeros, {length} bytes each: {whole / 2**20:.1f} MiB traced; copied: {copied / 2**20:.1f} MiB")
assert whole > 30 << 20 and copied < 1 << 20, "this has changed"
PY
