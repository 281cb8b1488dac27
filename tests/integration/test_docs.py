"""The pages say what is so: tutorial commands run, links lead somewhere, generated pages are
fresh.
"""

from __future__ import annotations

import fnmatch
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lamina.cli import main
from tests.support.installed import ROOT, copy_of_repository, empty_environment
from tests.support.registry_server import RegistryServer
from tests.support.tools import require_root, require_tool

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
TUTORIAL = ROOT / "docs" / "tutorial" / "first-image.md"


def blocks(page: Path, language: str) -> list[str]:
    return [body for found, body in BLOCK.findall(page.read_text()) if found == language]


@pytest.mark.tools
@pytest.mark.kernel
def test_the_tutorial_runs_as_it_is_written(tmp_path: Path, registry: RegistryServer) -> None:
    require_root()
    require_tool("apt-get", "dpkg-deb", "runc")
    source, programs = copy_of_repository(tmp_path), empty_environment(tmp_path)
    environment = {
        **os.environ,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "REGISTRY": registry.host,
        "LAMINA_STORE": str(tmp_path / "store"),
    }
    environment.pop("PYTHONPATH", None)
    found = BLOCK.findall(TUTORIAL.read_text())
    ran = 0
    output = ""
    for language, body in found:
        if language == "sh":
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", body],
                cwd=source,
                env=environment,
                capture_output=True,
                text=True,
                stdin=subprocess.DEVNULL,
            )
            assert done.returncode == 0, f"$ {body}{done.stdout}{done.stderr}"
            output = done.stdout
            ran += 1
        elif language == "text":
            pattern = body.strip().replace("[", "[[]").replace("...", "*")
            assert fnmatch.fnmatchcase(output.strip(), pattern), f"{output!r} is not {body!r}"
    assert ran >= 4


@pytest.mark.parametrize("page", ["README.md", "docs/how-to/python.md"])
def test_python_examples_run(page: str, tmp_path: Path, oci_image: Callable[[str], Path]) -> None:
    pytest.importorskip("fsspec")
    native = f"oci:{tmp_path}/native:latest"
    assert main(["convert", "--quiet", f"oci:{oci_image('minbase')}:latest", native]) == 0
    program = "".join(blocks(ROOT / page, "python"))
    shown = re.compile(r"docker://registry\.example\.com/app|oci:lazy")
    assert shown.search(program)
    program = shown.sub(native, program)
    command = [sys.executable, "-W", "error", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "ID=debian" in done.stdout


def test_the_first_screen_of_the_readme() -> None:
    """The two commands that do everything are targets, and stand before anything else."""
    first = blocks(ROOT / "README.md", "sh")[0].splitlines()
    assert first == ["make demo", "make test"]
    rules = (ROOT / "Makefile").read_text()
    assert all(f"\n{line.removeprefix('make ')}: " in rules for line in first)
    assert (ROOT / "README.md").read_text()[:1500].index("make test") > 0


def test_what_works_without_root_runs_as_it_is_written(
    tmp_path: Path, oci_image: Callable[[str], Path]
) -> None:
    install, *commands = blocks(ROOT / "README.md", "sh")[1].splitlines()
    assert install == "pip install ."
    (tmp_path / "my-image").symlink_to(oci_image("minbase"))
    programs = os.path.dirname(sys.executable)
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"}
    environment["LAMINA_STORE"] = str(tmp_path / "store")
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "\n".join(commands)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
    assert "ID=debian" in done.stdout
    assert "os-release" in done.stdout


def test_the_quick_start_is_the_tutorial() -> None:
    """README's four commands are those that the tutorial explains, and that are run above."""
    quick = blocks(ROOT / "README.md", "sh")[-1]
    commands = [line for line in quick.splitlines() if line]
    taught = [
        line.replace(" --rm", "") for body in blocks(TUTORIAL, "sh") for line in body.splitlines()
    ]
    assert len(commands) == 4
    assert set(commands) <= set(taught)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = BLOCK.sub("", page.read_text())
    for target in LINK.findall(text):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name}: {target} does not exist"
        if anchor:
            assert anchor in anchors(file), f"{page.name}: {target} has no such heading"


def test_every_page_is_in_the_index() -> None:
    index = ROOT / "docs" / "README.md"
    named = {
        (index.parent / target.partition("#")[0]).resolve()
        for target in LINK.findall(index.read_text())
    }
    pages = {page for page in index.parent.rglob("*.md") if page.parent.name != "adr"}
    assert pages - named == {index}


def anchors(page: Path) -> set[str]:
    """Anchors as GitHub makes them from headings."""
    headings = HEADING.findall(BLOCK.sub("", page.read_text()))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_in_pages_exist(page: Path) -> None:
    """Every ``lamina VERB`` in a code block or in backquotes is a verb."""
    from lamina.cli.verbs import VERBS

    text = page.read_text()
    code = [body for _, body in BLOCK.findall(text)] + re.findall(
        r"`([^`\n]+)`", BLOCK.sub("", text)
    )
    verbs = {
        verb for body in code for verb in re.findall(r"(?m)(?:^|[$|] )lamina ([a-z][a-z-]*)", body)
    }
    unknown = verbs - {"help", *(verb.name for verb in VERBS)}
    assert not unknown, f"{page.name}: no such verb: {unknown}"


@pytest.mark.parametrize(
    ("module", "page"), [("reference", "cli.md"), ("python_reference", "python.md")]
)
def test_the_references_are_fresh(module: str, page: str) -> None:
    path = str(ROOT / "docs" / "reference" / page)
    program = [sys.executable, "-m", f"lamina.cli.{module}", "--check", path]
    done = subprocess.run(program, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stderr} (make docs)"


def test_pages_name_nothing_of_one_machine() -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True
    ).stdout.split("\0")
    if not any(tracked):
        pytest.skip("not a git checkout")
    for name in filter(None, tracked):
        path = ROOT / name
        if path.is_file() and path != Path(__file__):
            text = path.read_bytes()
            assert not re.search(rb"(?<![\w.])(/work/(main|shared)|/root/[.])", text), (
                f"{name} names a path of a machine"
            )
