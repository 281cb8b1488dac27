"""What ``lamina snapshotter`` refuses before it serves."""

from __future__ import annotations

from pathlib import Path

import pytest

from lamina.cli.dispatch import run_command


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--creds", "ada:secret"], "no credentials for all registries"),
        (["--index", "always"], "indexes no images"),
        (["--namespace-policy", "pods"], "'pods' is not NAMESPACE=FILE"),
        (["--namespace-policy", "pods=/nowhere/policy.json"], "there is no policy file"),
        (["--policy", "/nowhere/policy.json"], "there is no policy file"),
        (["--socket", f"/{'x' * 120}"], "the path of the socket is too long"),
    ],
)
def test_what_is_refused(
    options: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["snapshotter", "--root", str(tmp_path / "r"), *options]) in (2, 7)
    assert words in capsys.readouterr().err
    assert not (tmp_path / "r").exists()
