"""The few functions of zlib that Python's module does not offer: block stops and where they are.

``inflate`` with ``Z_BLOCK`` returns at every boundary of a deflate block, and tells how many bits
of the last input byte are still unused there.  zlib-ng does the same in half the time.  Sources:
``zlib.h`` (zlib 1.2.11 or newer), ``zlib-ng.h`` (2.0 or newer).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from lamina.errors import UnsupportedError

Z_NO_FLUSH = 0
Z_BLOCK = 5
Z_OK = 0
Z_STREAM_END = 1
Z_BUF_ERROR = -5
AT_BLOCK_END = 128
IN_LAST_BLOCK = 64
UNUSED_BITS = 7
GZIP_WINDOW_BITS = 31
RAW_WINDOW_BITS = -15


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


class Library(NamedTuple):
    """The functions of one library; each gets a pointer to a :class:`ZStream`, and returns a code.

    ``start`` also gets the window bits, ``inflate`` the kind of flush, ``prime`` a number of bits
    and their value, and ``set_window`` the address and length of a window.
    """

    start: Callable[[Any, int], int]
    inflate: Callable[[Any, int], int]
    reset: Callable[[Any], int]
    end: Callable[[Any], int]
    prime: Callable[[Any, int, int], int]
    set_window: Callable[[Any, int, int], int]


@cache
def load_library() -> Library:
    """Return the fastest library here: zlib-ng, of the system or of its Python package, else zlib.

    Raises UnsupportedError if this machine has none that can be loaded.
    """
    for path in ("libz-ng.so.2", *_packaged()):
        with suppress(OSError, AttributeError):
            return _zlib_ng(ctypes.CDLL(path))
    for path in ("libz.so.1", "libz.so"):
        with suppress(OSError, AttributeError):
            return _zlib(ctypes.CDLL(path))
    raise UnsupportedError(
        "no libz.so.1 can be loaded, which indexing a gzip layer needs",
        hint="install zlib (Debian: zlib1g)",
    )


def _packaged() -> list[str]:
    """Return the extension module of the package zlib-ng, whose library is linked into it and
    visible.
    """
    found = find_spec("zlib_ng")
    folders = found.submodule_search_locations if found is not None else None
    return [str(path) for folder in folders or () for path in Path(folder).glob("zlib_ng.*.so")]


def _zlib_ng(library: ctypes.CDLL) -> Library:
    # zng_stream has the layout of z_stream up to its last two fields, and is shorter.
    start = _function(library.zng_inflateInit2, ctypes.c_int)
    return Library(start, *_functions(library, "zng_inflate"))


def _zlib(library: ctypes.CDLL) -> Library:
    library.zlibVersion.restype = ctypes.c_char_p
    init = _function(library.inflateInit2_, ctypes.c_int, ctypes.c_char_p, ctypes.c_int)

    def start(stream: Any, window_bits: int) -> int:
        return int(init(stream, window_bits, library.zlibVersion(), ctypes.sizeof(ZStream)))

    return Library(start, *_functions(library, "inflate"))


def _functions(library: ctypes.CDLL, prefix: str) -> tuple[Any, ...]:
    """Return the functions that both libraries have, in the order of :class:`Library`."""
    return (
        _function(getattr(library, prefix), ctypes.c_int),
        _function(getattr(library, f"{prefix}Reset")),
        _function(getattr(library, f"{prefix}End")),
        _function(getattr(library, f"{prefix}Prime"), ctypes.c_int, ctypes.c_int),
        _function(getattr(library, f"{prefix}SetDictionary"), ctypes.c_void_p, ctypes.c_uint),
    )


def _function(function: Any, *arguments: type) -> Any:
    function.argtypes = (ctypes.POINTER(ZStream), *arguments)
    function.restype = ctypes.c_int
    return function


def new_inflate(window_bits: int = GZIP_WINDOW_BITS) -> ZStream:
    """Return the state of an inflate of gzip members, or of deflate data without anything around
    it; :func:`end_inflate` frees it.
    """
    stream = ZStream()
    code = load_library().start(ctypes.byref(stream), window_bits)
    if code != Z_OK:
        raise UnsupportedError(f"zlib refuses to start (code {code})")
    return stream


def end_inflate(stream: ZStream) -> None:
    """Free the state of an inflate; may be called again."""
    load_library().end(ctypes.byref(stream))
