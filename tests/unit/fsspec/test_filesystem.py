from __future__ import annotations

import builtins
import datetime as dt
import errno
import importlib
import io
import pickle
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from tests.support.native_images import build_image, push_image, some_bytes

import lamina
from lamina.erofs.tree import Node
from lamina.errors import FetchError, UnsupportedError, UsageError
from lamina.fsspec import LaminaFileSystem
from lamina.opening.request import OpenRequest


def link(target: bytes) -> Node:
    return Node(stat.S_IFLNK | 0o777, size=len(target), target=target)


LINES = b"first\nsecond\nthird\n"
BIG = some_bytes(30_000, 1)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> str:
    files = {b"data/lines.txt": LINES, b"data/big.bin": BIG, b"data/deep/er/x.txt": b"x"}
    nodes = {
        b"data/to-file": link(b"lines.txt"),
        b"data/to-dir": link(b"deep"),
        b"data/to-nothing": link(b"absent"),
        b"data/to-itself": link(b"to-itself"),
        b"pipe": Node(stat.S_IFIFO | 0o644),
    }
    layout = tmp_path_factory.mktemp("image") / "layout"
    push_image(build_image(files, nodes=nodes, pack_size=4096), layout)
    return f"oci:{layout}:latest"


@pytest.fixture
def files(reference: str) -> Iterator[LaminaFileSystem]:
    system = fsspec.filesystem("lamina", reference=reference)
    assert isinstance(system, LaminaFileSystem)
    yield system
    system.close()


@pytest.fixture(autouse=True)
def _registered() -> None:
    # What the entry point does once the package is installed.
    fsspec.register_implementation("lamina", LaminaFileSystem, clobber=True)


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    yield
    for system in list(LaminaFileSystem._cache.values()):
        system.close()


def test_open_by_url(reference: str) -> None:
    url = f"lamina://{reference}//data/lines.txt"
    with fsspec.open(url, "rb") as file:
        assert file.read() == LINES
    with fsspec.open(url, "rt") as file:
        assert list(file) == ["first\n", "second\n", "third\n"]


def test_a_registry_in_a_url() -> None:
    url = "lamina://registry.example:5000/team/app:1.2//usr/share/x"
    assert LaminaFileSystem._get_kwargs_from_urls(url) == {
        "reference": "registry.example:5000/team/app:1.2"
    }
    url = "lamina://docker://registry.example/app//usr/share/x"
    assert LaminaFileSystem._get_kwargs_from_urls(url) == {
        "reference": "docker://registry.example/app"
    }
    assert LaminaFileSystem._strip_protocol(url) == "/usr/share/x"
    assert LaminaFileSystem._strip_protocol(url) == "/usr/share/x"


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ("", "/"),
        ("/", "/"),
        ("data", "/data"),
        ("/data/", "/data"),
        ("lamina://data/x", "/data/x"),
        ("lamina://app//", "/"),
        ("lamina://app:1//data//", "/data"),
    ],
)
def test_paths(given: str, path: str) -> None:
    assert LaminaFileSystem._strip_protocol(given) == path
    assert LaminaFileSystem._strip_protocol([given]) == [path]


def test_with_the_image_as_an_option(reference: str) -> None:
    with fsspec.open("lamina://data/lines.txt", "rb", reference=reference) as file:
        assert file.read() == LINES
    system, path = fsspec.url_to_fs("lamina://data", reference=reference)
    assert path == "/data"
    assert system.isdir(path)


def test_urls_of_paths(files: LaminaFileSystem, reference: str) -> None:
    url = files.unstrip_protocol("/data/lines.txt")
    assert url == f"lamina://{reference}//data/lines.txt"
    with fsspec.open(url) as file:
        assert file.read() == LINES


def test_listing(files: LaminaFileSystem) -> None:
    assert files.ls("/", detail=False) == ["/data", "/pipe"]
    assert files.ls("data/lines.txt", detail=False) == ["/data/lines.txt"]
    listed = {entry["name"]: entry for entry in files.ls("/data")}
    assert {name: entry["type"] for name, entry in listed.items()} == {
        "/data/big.bin": "file",
        "/data/deep": "directory",
        "/data/lines.txt": "file",
        "/data/to-dir": "link",
        "/data/to-file": "file",
        "/data/to-itself": "link",
        "/data/to-nothing": "link",
    }
    assert listed["/data/to-file"]["size"] == len(LINES)
    assert listed["/data/to-file"]["destination"] == "lines.txt"
    assert listed["/data/to-file"]["islink"]
    assert files.ls("/")[1]["type"] == "other"
    assert files.ls("/data/to-dir", detail=False) == ["/data/to-dir/er"]


def test_info(files: LaminaFileSystem) -> None:
    found = files.info("/data/to-file")
    assert found["type"] == "file"
    assert found["size"] == len(LINES)
    assert found["name"] == "/data/to-file"
    assert files.size("/data/big.bin") == len(BIG)
    assert files.exists("/data")
    assert not files.exists("/absent")
    assert files.isfile("/data/to-file")
    assert files.isdir("/data/to-dir")
    assert files.modified("/data/big.bin") == dt.datetime.fromtimestamp(1_700_000_000, dt.UTC)


def test_find_walk_and_glob(files: LaminaFileSystem) -> None:
    assert files.find("/data/deep") == ["/data/deep/er/x.txt"]
    assert files.glob("/data/*.txt") == ["/data/lines.txt"]
    assert files.glob("/**/x.txt") == ["/data/deep/er/x.txt"]
    assert [folder for folder, _, _ in files.walk("/data")] == [
        "/data",
        "/data/deep",
        "/data/deep/er",
    ]
    assert files.du("/data/deep") == 1


@pytest.mark.parametrize(
    ("start", "end"),
    [(None, None), (10, 20), (-5, None), (None, -5), (20, 10), (29_990, 40_000), (0, 0)],
)
def test_ranges(files: LaminaFileSystem, start: int | None, end: int | None) -> None:
    assert files.cat_file("/data/big.bin", start, end) == BIG[start:end]


def test_many_at_once(files: LaminaFileSystem, tmp_path: Path) -> None:
    assert files.cat(["/data/lines.txt", "/data/deep/er/x.txt"]) == {
        "/data/lines.txt": LINES,
        "/data/deep/er/x.txt": b"x",
    }
    assert files.cat_ranges(["/data/big.bin"] * 2, [0, 100], [4, 104]) == [BIG[:4], BIG[100:104]]
    files.get("/data/lines.txt", str(tmp_path / "copy"))
    assert (tmp_path / "copy").read_bytes() == LINES
    assert files.head("/data/big.bin", 10) == BIG[:10]
    assert files.tail("/data/big.bin", 10) == BIG[-10:]


def test_seeking(files: LaminaFileSystem) -> None:
    with files.open("/data/big.bin") as file:
        assert isinstance(file, io.BufferedReader)
        file.seek(20_000)
        assert file.read(100) == BIG[20_000:20_100]


def test_errors_are_the_usual_ones(files: LaminaFileSystem) -> None:
    with pytest.raises(FileNotFoundError):
        files.open("/absent")
    with pytest.raises(FileNotFoundError):
        files.ls("/absent")
    with pytest.raises(IsADirectoryError):
        files.cat_file("/data")
    with pytest.raises(OSError, match="read-only") as caught:
        files.open("/data/lines.txt", "r+b")
    assert caught.value.errno == errno.EROFS
    with pytest.raises(ValueError, match="zz"):
        files.open("/data/lines.txt", "zz")


def test_a_registry_that_fails_is_no_answer() -> None:
    away = LaminaFileSystem("localhost:1/app", skip_instance_cache=True)
    for question in (away.exists, away.isfile, away.isdir):
        with pytest.raises(FetchError):
            question("/etc/passwd")


def test_links_that_lead_nowhere_do_not_exist(files: LaminaFileSystem) -> None:
    for path in ("/data/to-itself", "/data/to-nothing", "/data/lines.txt/below"):
        assert not files.exists(path)
        assert not files.isfile(path)
        assert not files.isdir(path)


def test_blocks_between_delimiters(files: LaminaFileSystem) -> None:
    assert files.read_block("/data/lines.txt", 3, 4, b"\n") == b"second\n"
    with files.open("/data/to-file") as file:
        assert file.size == len(LINES)


def test_nothing_can_be_written(files: LaminaFileSystem, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"x")
    for attempt in (
        lambda: files.open("/new", "wb"),
        lambda: files.open("/new", "w"),
        lambda: files.mkdir("/new"),
        lambda: files.makedirs("/new"),
        lambda: files.rm("/data"),
        lambda: files.rm_file("/data/big.bin"),
        lambda: files.rmdir("/data"),
        lambda: files.touch("/new"),
        lambda: files.pipe("/new", b"x"),
        lambda: files.mv("/data/big.bin", "/new"),
        lambda: files.cp_file("/data/big.bin", "/new"),
        lambda: files.put(str(tmp_path / "x"), "/new"),
    ):
        with pytest.raises(UnsupportedError, match="read-only"):
            attempt()


def test_pickling_opens_the_image_where_it_arrives(files: LaminaFileSystem) -> None:
    data = pickle.dumps(files)
    files.close()
    again = pickle.loads(data)
    assert again.cat_file("/data/lines.txt") == LINES


def test_closing_forgets_the_file_system(reference: str) -> None:
    first = fsspec.filesystem("lamina", reference=reference)
    assert fsspec.filesystem("lamina", reference=reference) is first
    first.ls("/")
    first.close()
    first.close()
    assert fsspec.filesystem("lamina", reference=reference) is not first


def test_without_an_image() -> None:
    with pytest.raises(UsageError, match="no image") as caught:
        fsspec.filesystem("lamina")
    assert "lamina://" in (caught.value.hint or "")


def test_client_options(reference: str) -> None:
    good = LaminaFileSystem(reference, client={"plain_http": False, "attempts": 1})
    assert good.exists("/data")
    bad = LaminaFileSystem(reference, client={"plain_htpt": False})
    with pytest.raises(UsageError, match="plain_htpt"):
        bad.ls("/")


def test_options_of_open(reference: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real, seen = lamina.open, []

    def opening(request: OpenRequest) -> object:
        seen.append(request)
        return real(request)

    monkeypatch.setattr(lamina, "open", opening)
    system = LaminaFileSystem(reference, index="never", allow_older=True)
    assert system.exists("/data")
    system.close()
    assert (seen[0].index, seen[0].allow_older) == ("never", True)
    with pytest.raises(UsageError, match="nevr"):
        LaminaFileSystem(reference, index="nevr").ls("/")


def test_without_fsspec_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *args: object, **kwargs: object) -> object:
        if name.split(".", maxsplit=1)[0] == "fsspec":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *args, **kwargs)  # type: ignore[arg-type]

    for module in ("lamina.fsspec", "lamina.fsspec.filesystem"):
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(UnsupportedError) as caught:
        importlib.import_module("lamina.fsspec")
    assert caught.value.hint == "pip install 'lamina[fsspec]'"


def test_links_are_links_in_every_answer(files: LaminaFileSystem) -> None:
    for entry in files.ls("/data"):
        about = files.info(entry["name"])
        assert about["islink"] == entry["islink"]
        assert about.get("destination") == entry.get("destination")
    assert files.info("/data/to-dir")["type"] == "directory"
    assert files.info("/data/to-file")["destination"] == "lines.txt"
    assert files.info("/data/to-nothing")["type"] == "link"


def test_links_that_lead_nowhere_are_no_hindrance(files: LaminaFileSystem, tmp_path: Path) -> None:
    assert files.du("/data") == 2 * len(LINES) + len(BIG) + 1
    files.get("/", str(tmp_path / "copy"), recursive=True)
    copied = {str(p.relative_to(tmp_path / "copy")) for p in (tmp_path / "copy").rglob("*.*")}
    assert copied == {"data/lines.txt", "data/big.bin", "data/deep/er/x.txt"}
    assert (tmp_path / "copy/data/to-file").read_bytes() == LINES
    assert not (tmp_path / "copy/pipe").exists()
    with pytest.raises(FileNotFoundError):
        files.get_file("/data/absent", str(tmp_path / "absent"))


def test_listings_are_kept(files: LaminaFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    first = files.ls("/data")
    monkeypatch.setattr(lamina.Image, "scandir", lambda *_: pytest.fail("it was listed again"))
    assert files.ls("/data") == first
    first.clear()
    assert files.ls("/data/", detail=False)
    files.invalidate_cache("/data/deep")
    assert files.ls("/data")
    files.invalidate_cache()
    with pytest.raises(pytest.fail.Exception):
        files.ls("/data")


def test_one_slash_is_told_of() -> None:
    with pytest.raises(UsageError) as caught:
        fsspec.open("lamina://registry.example/app:1/etc/os-release").open()
    assert "two slashes" in (caught.value.hint or "")


# fsspec leaves the files of its block cache to the garbage collector.
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_blockcache(reference: str, tmp_path: Path) -> None:
    cached = fsspec.filesystem(
        "blockcache",
        target_protocol="lamina",
        target_options={"reference": reference},
        cache_storage=str(tmp_path / "blocks"),
    )
    for _ in range(2):
        with cached.open("/data/big.bin", block_size=4096) as file:
            file.seek(20_000)
            assert file.read(100) == BIG[20_000:20_100]
    assert any(path.stat().st_size >= 20_100 for path in (tmp_path / "blocks").iterdir())
    with fsspec.open(
        f"simplecache::lamina://{reference}//data/lines.txt",
        simplecache={"cache_storage": str(tmp_path / "simple")},
    ) as file:
        assert file.read() == LINES


def test_rsync(reference: str, tmp_path: Path) -> None:
    from fsspec.generic import GenericFileSystem, rsync

    # Its default method makes file systems of the scheme alone, which names no image.
    system = GenericFileSystem(default_method="options")
    source, target = f"lamina://{reference}//data", f"file://{tmp_path}/copy"
    (tmp_path / "copy").mkdir()
    rsync(source, target, fs=system)
    assert (tmp_path / "copy/deep/er/x.txt").read_bytes() == b"x"
    assert (tmp_path / "copy/big.bin").read_bytes() == BIG
    assert rsync(source, target, fs=system) == {}


def test_tables_by_url(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas", reason="pandas is not installed (pip install pandas)")
    csv = b"name,size\na,1\nb,2\n"
    push_image(build_image({b"t/table.csv": csv}, pack_size=4096), tmp_path / "layout")
    url = f"lamina://oci:{tmp_path}/layout:latest//t/table.csv"
    assert pandas.read_csv(url)["size"].sum() == 3


def test_parquet_by_url(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    data = io.BytesIO()
    parquet.write_table(pyarrow.table({"size": list(range(10_000))}), data)
    push_image(build_image({b"t/table.parquet": data.getvalue()}), tmp_path / "layout")
    system = fsspec.filesystem("lamina", reference=f"oci:{tmp_path}/layout:latest")
    table = parquet.read_table("/t/table.parquet", filesystem=system)
    assert table["size"].to_pylist() == list(range(10_000))
    with fsspec.open(f"lamina://oci:{tmp_path}/layout:latest//t/table.parquet") as file:
        assert parquet.ParquetFile(file).metadata.num_rows == 10_000
