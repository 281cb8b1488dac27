"""The few functions of zlib that Python's module does not offer: block stops and where they are.

``inflate`` with ``Z_BLOCK`` returns at every boundary of a deflate block, and tells how many bits
of the last input byte are still unused there.  Source: ``zlib.h`` (zlib 1.2.11 or newer).
"""

from __future__ import annotations

import ctypes
from functools import cache

from lamina.errors import UnsupportedError

Z_BLOCK = 5
Z_OK = 0
Z_STREAM_END = 1
Z_BUF_ERROR = -5
AT_BLOCK_END = 128
IN_LAST_BLOCK = 64
UNUSED_BITS = 7
GZIP_WINDOW_BITS = 31


class ZStream(ctypes.Structure):
    """``z_stream``: input, output, and the state of one inflate."""

    _fields_ = (
        ("next_in", ctypes.c_void_p),
        ("avail_in", ctypes.c_uint),
        ("total_in", ctypes.c_ulong),
        ("next_out", ctypes.c_void_p),
        ("avail_out", ctypes.c_uint),
        ("total_out", ctypes.c_ulong),
        ("msg", ctypes.c_char_p),
        ("state", ctypes.c_void_p),
        ("zalloc", ctypes.c_void_p),
        ("zfree", ctypes.c_void_p),
        ("opaque", ctypes.c_void_p),
        ("data_type", ctypes.c_int),
        ("adler", ctypes.c_ulong),
        ("reserved", ctypes.c_ulong),
    )


@cache
def load_library() -> ctypes.CDLL:
    """Return libz.  Raises UnsupportedError if this machine has none that can be loaded."""
    for name in ("libz.so.1", "libz.so"):
        try:
            library = ctypes.CDLL(name)
            library.zlibVersion.restype = ctypes.c_char_p
            stream = ctypes.POINTER(ZStream)
            library.inflateInit2_.argtypes = (stream, ctypes.c_int, ctypes.c_char_p, ctypes.c_int)
            library.inflate.argtypes = (stream, ctypes.c_int)
            library.inflateReset.argtypes = (stream,)
            library.inflateEnd.argtypes = (stream,)
        except (OSError, AttributeError):
            continue
        return library
    raise UnsupportedError(
        "No libz.so.1 can be loaded, which indexing a gzip layer needs.",
        hint="Install zlib (Debian: zlib1g).",
    )


def new_inflate() -> ZStream:
    """Return the state of an inflate of gzip members; :func:`end_inflate` frees it."""
    library = load_library()
    stream = ZStream()
    code = library.inflateInit2_(
        ctypes.byref(stream), GZIP_WINDOW_BITS, library.zlibVersion(), ctypes.sizeof(ZStream)
    )
    if code != Z_OK:
        raise UnsupportedError(f"zlib refuses to start (code {code}).")
    return stream


def end_inflate(stream: ZStream) -> None:
    """Free the state of an inflate; may be called again."""
    load_library().inflateEnd(ctypes.byref(stream))
