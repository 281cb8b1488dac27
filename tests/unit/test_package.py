from __future__ import annotations

import subprocess
import sys
import traceback
from pathlib import Path

import pytest

import lamina
from lamina.errors import Error, UsageError
from lamina.version import VERSION


def test_what_the_package_offers() -> None:
    assert lamina.__version__ == VERSION
    assert lamina.Error is Error
    assert callable(lamina.open)
    assert set(lamina.__all__) == {"Error", "Image", "ImagePath", "Stat", "__version__", "open"}


def test_importing_it_imports_nothing_heavy() -> None:
    code = "import sys, lamina; print(' '.join(sorted(sys.modules)))"
    output = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout
    loaded = {name.split(".")[0] for name in output.split()}
    assert not loaded & {"msgspec", "zstandard", "fsspec", "urllib3", "blake3", "json", "logging"}
    assert "lamina.image" not in output.split()


def test_arguments_that_make_no_sense() -> None:
    with pytest.raises(TypeError, match="not PosixPath"):
        lamina.open(Path("layout"))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="not NoneType"):
        lamina.open(None)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="'nevr'"):
        lamina.open("oci:layout", index="nevr")  # type: ignore[arg-type]


def test_tracebacks_show_hints() -> None:
    error = Error("it broke", hint="mend it")
    assert traceback.format_exception_only(error)[-2:] == [
        "lamina.errors.Error: it broke\n",
        "hint: mend it\n",
    ]
    assert not hasattr(Error("it broke"), "__notes__")
