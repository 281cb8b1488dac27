"""The ``lamina://`` file system of fsspec: images as files for pandas, dask and all that speak it.

::

    import fsspec

    with fsspec.open("lamina://registry.example/app:1//etc/os-release") as file:
        print(file.read())

    files = fsspec.filesystem("lamina", reference="oci:layout:latest")
    files.ls("/usr/bin", detail=False)

Needs the extra ``lamina[fsspec]``; importing this package without it raises UnsupportedError.
"""

from __future__ import annotations

from lamina.errors import UnsupportedError

try:
    from lamina.fsspec.filesystem import LaminaFileSystem
except ModuleNotFoundError as error:
    if error.name is None or error.name.partition(".")[0] != "fsspec":
        raise
    raise UnsupportedError(
        "the lamina:// file system needs the package fsspec",
        hint="pip install 'lamina[fsspec]'",
    ) from error

__all__ = ["LaminaFileSystem"]
