"""What ``lamina.open`` gives, held against what os, io and pathlib do with the same tree."""

from __future__ import annotations

import errno
import io
import os
import pathlib
import pickle
import stat
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.support.native_images import build_image, push_image

import lamina
from lamina.api.client import client_options
from lamina.api.hints import in_python
from lamina.erofs.tree import Node
from lamina.errors import NotFoundError, UsageError

FILES = {
    b"etc/os-release": b"ID=debian\n",
    b"etc/passwd": "root:x:0:0:w\u00fcrzel\n".encode(),
    b"etc/.hidden/deep.conf": b"x",
    b"etc/a.conf": b"a",
    b"etc/latin": "\u00e9".encode("latin-1"),
    b"usr/lib/x/y/deep.conf": b"deep",
    b"usr/lib/b[1].txt": b"brackets",
    b"usr/lib/lib/y/deep.conf": b"deeper",
    b"\xff\xfe": b"no text",
    b"empty": b"",
}
LINKS = {
    b"bin": b"usr/lib",
    b"etc/to-passwd": b"passwd",
    b"etc/dangling": b"nowhere",
    b"etc/loop": b"loop",
}


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("image") / "layout"
    links = {
        path: Node(stat.S_IFLNK | 0o777, size=len(target), target=target)
        for path, target in LINKS.items()
    }
    push_image(build_image(FILES, nodes=links, pack_size=4096), folder)
    return f"oci:{folder}:latest"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same files on disk."""
    root = tmp_path_factory.mktemp("tree")
    for name, content in FILES.items():
        path = os.fsencode(root) + b"/" + name
        os.makedirs(os.path.dirname(path), exist_ok=True)
        Path(os.fsdecode(path)).write_bytes(content)
    for name, target in LINKS.items():
        os.symlink(target, os.fsencode(root) + b"/" + name)
    return root


@pytest.fixture
def image(layout: str, tmp_path: Path) -> Iterator[lamina.Image]:
    with lamina.open(layout, store=tmp_path / "store") as opened:
        yield opened


def test_nothing_internal_is_offered(image: lamina.Image) -> None:
    offered = {name for name in dir(image) if not name.startswith("_")}
    assert offered == {
        *("close", "closed", "config", "digest", "exists", "glob", "is_dir", "is_file"),
        *("is_symlink", "joinpath", "listdir", "lstat", "manifest", "open", "platform", "pread"),
        *("read_bytes", "read_text", "readlink", "reference", "root", "scandir", "stat"),
        *("statistics", "walk", "xattrs"),
    }
    assert dir(lamina) == lamina.__all__
    with pytest.raises(AttributeError, match="nonsense"):
        lamina.nonsense  # noqa: B018


def test_what_it_is(image: lamina.Image, layout: str) -> None:
    assert image.reference == layout
    assert image.digest.startswith("sha256:")
    assert image.platform == str(image.config.platform)
    assert repr(image) == f"<lamina.Image {layout!r} {image.digest} {image.platform}>"
    image.close()
    assert "closed" in repr(image)


def content(path: lamina.ImagePath | Path, *mode: str) -> str | bytes:
    with path.open(*mode) as file:
        found = file.read()
        assert isinstance(found, (str, bytes))
        return found


def test_names_come_as_they_were_asked_with(image: lamina.Image, tree: Path) -> None:
    assert image.listdir() == sorted(os.listdir(tree), key=os.fsencode)
    assert image.listdir(b"/") == sorted(os.listdir(os.fsencode(tree)))
    walked = [path for path, _ in image.walk(b"/")]
    assert [path for path, _ in image.walk()] == [os.fsdecode(path) for path in walked]
    assert b"/\xff\xfe" in walked
    assert image.read_bytes("/\udcff\udcfe") == image.read_bytes(b"/\xff\xfe") == b"no text"
    assert dict(image.scandir("/"))["\udcff\udcfe"].name == "\udcff\udcfe"
    assert (image.readlink("/bin"), image.readlink(b"/bin")) == ("usr/lib", b"usr/lib")


@pytest.mark.parametrize("path", ["etc/passwd", "bin", "etc/dangling", "etc/loop", "no", "empty/x"])
def test_questions_are_answered_as_pathlib_does(image: lamina.Image, tree: Path, path: str) -> None:
    for question in ("exists", "is_file", "is_dir", "is_symlink"):
        try:
            answer = getattr(tree / path, question)()
        except OSError:
            answer = False  # Python 3.11 and 3.12 raise for a loop.
        assert getattr(image, question)(path) == answer
        assert getattr(image / path, question)() == answer
    assert (path in image) == image.exists(path)


def test_stat_looks_like_that_of_os(image: lamina.Image, tree: Path) -> None:
    ours, theirs = image.stat("/etc/to-passwd"), os.stat(tree / "etc/to-passwd")
    assert (ours.st_size, ours.st_nlink) == (theirs.st_size, theirs.st_nlink)
    assert stat.S_ISREG(ours.st_mode)
    assert ours.st_mtime_ns == ours.st_mtime * 1_000_000_000 == 1_700_000_000_000_000_000
    assert (ours.st_uid, ours.st_gid, ours.st_ino) == (0, 0, ours.ino)
    assert stat.S_ISLNK(image.lstat("/etc/to-passwd").st_mode)


@pytest.mark.parametrize(
    "pattern",
    [
        "*",
        "etc/*.conf",
        "etc/*/*",
        "**/*.conf",
        "**/deep.conf",
        "usr/**/y/*",
        "**/lib/**/deep.conf",
        "bin/*",
        "bi?/x",
        "*/",
        "usr/lib/b[[]1].txt",
        "etc/passwd/*",
        "etc/[!a-p]*",
        "./etc/./passwd",
        "nowhere/*",
    ],
)
def test_patterns_match_as_in_pathlib(image: lamina.Image, tree: Path, pattern: str) -> None:
    theirs = {"/" + str(found.relative_to(tree)) for found in tree.glob(pattern)}
    ours = list(image.glob(pattern))
    assert len(set(ours)) == len(ours)
    assert set(ours) == theirs
    assert [str(path) for path in (image / "").glob(pattern)] == ours
    assert [os.fsdecode(path) for path in image.glob(os.fsencode(pattern))] == ours


def test_patterns_below_a_path(image: lamina.Image) -> None:
    assert [str(path) for path in (image / "usr").rglob("*.conf")] == [
        "/usr/lib/lib/y/deep.conf",
        "/usr/lib/x/y/deep.conf",
    ]
    assert [path.name for path in (image / "usr/lib").glob("b[[]*")] == ["b[1].txt"]
    assert "/usr/lib/x" in list(image.glob("/usr/**"))
    for attempt in (lambda: image.glob(""), lambda: (image / "usr").glob("")):
        with pytest.raises(ValueError, match="empty"):
            list(attempt())
    with pytest.raises(NotImplementedError):
        list((image / "usr").glob("/etc/*"))


@pytest.mark.parametrize(
    "work",
    [
        lambda path: path.name,
        lambda path: (path.stem, path.suffix, path.suffixes),
        lambda path: path.with_suffix(".d").name,
        lambda path: path.with_name("x").name,
        lambda path: path.parent.name,
        lambda path: path.parents[0].name,
        lambda path: path.match("*.conf"),
        lambda path: path.read_text(),
        lambda path: path.read_bytes(),
        lambda path: content(path),
        lambda path: content(path, "rb"),
        lambda path: sorted(each.name for each in path.parent.iterdir()),
        lambda path: str(path.relative_to(path.parent.parent)),
        lambda path: path.is_relative_to(path.parent),
        lambda path: (path.parent / ".." / "os-release").parts[-2:],
        lambda path: (path.parent / "to-passwd").readlink(),
        lambda path: (path.parent / "to-passwd").resolve().name,
        lambda path: (path.parent / "nowhere").open(),
        lambda path: path.parent.read_bytes(),
        lambda path: (path / "below").stat(),
        lambda path: path.readlink(),
        lambda path: path.open("rb", encoding="utf-8"),
        lambda path: path.open("rw"),
        lambda path: path.open("q"),
        lambda path: (path.parent / "latin").read_text(encoding="latin-1"),
        lambda path: (path.parent / "latin").read_text(encoding="utf-8", errors="replace"),
        lambda path: (path.parent / "latin").read_text(encoding="utf-8"),
    ],
)
def test_paths_do_what_pathlib_does(
    image: lamina.Image, tree: Path, work: Callable[[lamina.ImagePath | Path], object]
) -> None:
    def result(path: lamina.ImagePath | Path) -> object:
        try:
            return work(path)
        except (OSError, ValueError) as error:
            kinds = (OSError, ValueError)
            return next(kind for kind in type(error).__mro__ if kind.__module__ == "builtins"), [
                isinstance(error, kind) for kind in kinds
            ]

    assert result(image / "etc" / "a.conf") == result(tree / "etc" / "a.conf")


def test_paths_are_values(image: lamina.Image) -> None:
    first, second = image / "etc" / "passwd", image / "/etc/passwd"
    assert first == second
    assert len({first, second}) == 1
    assert (image / "a") < (image / "b") <= (image / "b")
    assert repr(first) == f"ImagePath('/etc/passwd' in {image.reference!r})"
    assert bytes(image / "\udcff\udcfe") == b"/\xff\xfe"
    assert first != pathlib.Path("/etc/passwd")
    with pytest.raises(TypeError):
        open(first)  # type: ignore[call-overload]


def test_text_and_bytes(image: lamina.Image) -> None:
    assert image.read_text("/etc/passwd") == "root:x:0:0:w\u00fcrzel\n"
    with image.open("/etc/passwd") as file:
        assert isinstance(file, io.BufferedReader)
        assert file.mode == "rb"
    with image.open("/etc/passwd", "r") as text:
        assert [line.rstrip() for line in text] == ["root:x:0:0:w\u00fcrzel"]
    assert image.pread("/etc/passwd", 5, 4) == b"x:0:"
    for mode in ("w", "a", "x", "r+", "rb+"):
        with pytest.raises(OSError, match="read-only") as caught:
            image.open("/etc/passwd", mode)
        assert caught.value.errno == errno.EROFS


def test_a_closed_file_is_one_of_io(image: lamina.Image) -> None:
    file = image.open("/etc/passwd")
    file.close()
    raw = image.open("/etc/passwd").detach()
    raw.close()
    for each in (file, raw):
        for use in (
            each.read,
            each.tell,
            each.readable,
            each.seekable,
            each.fileno,
            lambda each=each: each.seek(0),
        ):
            with pytest.raises((ValueError, io.UnsupportedOperation)):
                use()


def test_a_closed_image_refuses_with_value_error(image: lamina.Image) -> None:
    file = image.open("/etc/passwd")
    image.close()
    image.close()
    assert image.closed
    for use in (
        lambda: image.exists("/etc"),
        lambda: image.listdir(),
        lambda: image.read_text("/etc/passwd"),
        lambda: file.read(1),
    ):
        with pytest.raises(ValueError, match="closed"):
            use()


def test_pickled_images_open_the_same_version(layout: str, tmp_path: Path) -> None:
    with lamina.open(layout, store=tmp_path / "store") as image:
        with pickle.loads(pickle.dumps(image)) as again:
            assert again.digest == image.digest
            assert again.reference == image.reference
            assert again.read_bytes("/etc/a.conf") == b"a"
        path = pickle.loads(pickle.dumps(image / "etc" / "a.conf"))
        assert path.read_text() == "a"
        assert path == image / "etc/a.conf"


def test_a_pickle_means_the_version_that_was_open(tmp_path: Path) -> None:
    push_image(build_image({b"f": b"old"}), tmp_path / "layout")
    with lamina.open(f"oci:{tmp_path}/layout:latest", store=tmp_path / "store") as image:
        data = pickle.dumps(image)
    push_image(build_image({b"f": b"new"}), tmp_path / "layout")
    with pickle.loads(data) as again:
        assert again.read_bytes("f") == b"old"


def test_credentials_are_keywords() -> None:
    said = client_options(
        None, username="me", password="secret", ca_file=Path("ca.pem"), plain_http=True
    )
    assert (said.username, said.password, said.ca_file) == ("me", "secret", "ca.pem")
    assert said.plain_http
    assert client_options(said, authfile="auth.json").password == "secret"
    with pytest.raises(UsageError, match="belong together"):
        lamina.open("localhost:1/app", username="me")


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("index it here: --index always", 'index it here: index="always"'),
        (
            "a registry without TLS needs --plain-http",
            "a registry without TLS needs plain_http=True",
        ),
        (
            "name its authority with --ca-file, or in X",
            'name its authority with ca_file="...", or in X',
        ),
        ("once with --allow-older", "once with allow_older=True"),
        ("give --decryption-key FILE, or", 'give decryption_keys="FILE", or'),
        (
            "give both: --decryption-key key.pem --decryption-key cert.pem",
            'give both: decryption_keys=["key.pem", "cert.pem"]',
        ),
        ("choose another one with --store", 'choose another one with store="..."'),
        ("raise --store-budget", "raise $LAMINA_STORE_BUDGET"),
    ],
)
def test_hints_are_in_words_of_python(said: str, meant: str) -> None:
    assert in_python(said) == meant


def test_an_ordinary_image_says_what_to_write(tmp_path: Path, oci_layout: str) -> None:
    with pytest.raises(lamina.Error) as caught:
        lamina.open(oci_layout, store=tmp_path / "store")
    assert 'index="always"' in (caught.value.hint or "")
    assert 'index="always"' in "".join(traceback.format_exception_only(caught.value))


@pytest.fixture
def oci_layout(tmp_path: Path) -> str:
    from lamina.oci.manifest import OCI_CONFIG, OCI_MANIFEST, Manifest, describe, encode
    from lamina.oci.reference import parse_reference
    from lamina.registry.open_repository import open_repository

    reference = f"oci:{tmp_path}/ordinary:latest"
    with open_repository(parse_reference(reference), write=True) as repository:
        config = encode(
            {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}}
        )
        described = describe(OCI_CONFIG, config)
        repository.push_blob(described, io.BytesIO(config))
        manifest = Manifest(schema_version=2, media_type=OCI_MANIFEST, config=described, layers=())
        repository.push_manifest("latest", OCI_MANIFEST, encode(manifest))
    return reference


def test_what_is_not_there_names_it(image: lamina.Image) -> None:
    with pytest.raises(FileNotFoundError, match="/etc/nothing") as caught:
        image.read_text("/etc/nothing")
    assert isinstance(caught.value, NotFoundError)
