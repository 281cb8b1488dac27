"""The runtime bundle: what an image configuration and a user's wishes become."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lamina.errors import FormatError, UsageError
from lamina.linux.capabilities import bounding_set
from lamina.oci.manifest import RuntimeConfig
from lamina.serve import container_etc
from lamina.serve.container_etc import write_etc_files
from lamina.serve.container_mounts import wanted_mounts
from lamina.serve.container_options import ContainerOptions, MemoryFolder, Volume
from lamina.serve.container_user import ContainerUser
from lamina.serve.runtime_bundle import (
    DEFAULT_CAPABILITIES,
    DEFAULT_PATH,
    capability_set,
    process_arguments,
    process_environment,
    runtime_config,
    working_directory,
    write_config,
)

HERE = ContainerOptions(hostname="here")


def made(
    config: RuntimeConfig | None = None, user: ContainerUser | None = None, **options: Any
) -> dict[str, Any]:
    config = config or RuntimeConfig(cmd=("/bin/sh",))
    return runtime_config(config, user or ContainerUser(), replace(HERE, **options))


def mounts(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {mount["destination"]: mount for mount in document["mounts"]}


@pytest.mark.parametrize(
    ("entrypoint", "cmd", "given", "command", "expected"),
    [
        ((), ("sh",), None, (), ["sh"]),
        ((), ("sh",), None, ("ls", "-l"), ["ls", "-l"]),
        (("/init",), (), None, (), ["/init"]),
        (("/init",), ("a", "b"), None, (), ["/init", "a", "b"]),
        (("/init",), ("a", "b"), None, ("c",), ["/init", "c"]),
        (("/init", "-x"), (), None, ("c",), ["/init", "-x", "c"]),
        (("/init",), ("a",), "/other", (), ["/other"]),
        (("/init",), ("a",), "/other", ("b",), ["/other", "b"]),
        (("/init",), ("a",), "", ("b",), ["b"]),
    ],
)
def test_arguments(
    entrypoint: tuple[str, ...],
    cmd: tuple[str, ...],
    given: str | None,
    command: tuple[str, ...],
    expected: list[str],
) -> None:
    config = RuntimeConfig(entrypoint=entrypoint, cmd=cmd)
    assert process_arguments(config, replace(HERE, entrypoint=given, command=command)) == expected


@pytest.mark.parametrize("given", [None, ""])
def test_nothing_to_run(given: str | None) -> None:
    config = RuntimeConfig(cmd=("sh",)) if given == "" else RuntimeConfig()
    with pytest.raises(UsageError, match="no command") as caught:
        process_arguments(config, replace(HERE, entrypoint=given))
    assert caught.value.hint


def test_environment_defaults() -> None:
    found = process_environment(RuntimeConfig(), HERE, "/root")
    assert found == [f"PATH={DEFAULT_PATH}", "HOSTNAME=here", "HOME=/root"]
    assert "TERM=xterm" in process_environment(RuntimeConfig(), replace(HERE, terminal=True), "/")


def test_environment_order_and_overrides() -> None:
    config = RuntimeConfig(
        env=("PATH=/bin", "A=1", "B=a=b", "JUNK", "=x", "A=2", "TERM=vt100", "EMPTY=")
    )
    options = replace(HERE, env=(("B", "new"), ("C", "3"), ("HOME", "/elsewhere")), terminal=True)
    assert process_environment(config, options, "/root") == [
        "PATH=/bin",
        "HOSTNAME=here",
        "TERM=vt100",
        "A=2",
        "B=new",
        "EMPTY=",
        "C=3",
        "HOME=/elsewhere",
    ]


def test_nul_bytes_are_refused() -> None:
    with pytest.raises(FormatError, match="NUL"):
        process_arguments(RuntimeConfig(cmd=("a\0b",)), HERE)
    with pytest.raises(FormatError, match="NUL"):
        process_environment(RuntimeConfig(env=("A=\0",)), HERE, "/")
    with pytest.raises(FormatError, match="NUL"):
        working_directory(RuntimeConfig(working_dir="/\0"), HERE)


@pytest.mark.parametrize(
    ("image", "given", "expected"),
    [
        ("", None, "/"),
        ("/app", None, "/app"),
        ("app/x/", None, "/app/x"),
        ("/a/../../b", None, "/b"),
        ("//srv", None, "/srv"),
        ("/app", "/other", "/other"),
    ],
)
def test_working_directory(image: str, given: str | None, expected: str) -> None:
    assert (
        working_directory(RuntimeConfig(working_dir=image), replace(HERE, workdir=given))
        == expected
    )


def test_relative_workdir_is_refused() -> None:
    with pytest.raises(UsageError, match="not absolute"):
        working_directory(RuntimeConfig(), replace(HERE, workdir="app"))


def test_capabilities() -> None:
    assert capability_set((), ()) == sorted(DEFAULT_CAPABILITIES)
    assert "CAP_NET_ADMIN" in capability_set(["net_admin"], ())
    assert "CAP_MKNOD" not in capability_set((), ["mknod"])
    assert capability_set(["CAP_CHOWN"], ["all"]) == ["CAP_CHOWN"]
    assert capability_set(["all"], ["chown"]) == sorted(bounding_set() - {"CAP_CHOWN"})
    for name in ("net-admin", "NET_RAWW", "", "CAP_"):
        with pytest.raises(UsageError, match="no capability"):
            capability_set([name], ())
        with pytest.raises(UsageError, match="no capability"):
            capability_set((), [name])


def test_root_gets_capabilities_and_others_only_the_bound() -> None:
    root = made()["process"]["capabilities"]
    assert (
        root["effective"] == root["permitted"] == root["bounding"] == sorted(DEFAULT_CAPABILITIES)
    )
    other = made(user=ContainerUser(1000, 1000))["process"]["capabilities"]
    assert other == {"bounding": sorted(DEFAULT_CAPABILITIES), "effective": [], "permitted": []}
    assert "inheritable" not in root
    assert "ambient" not in root


def test_process_of_a_user() -> None:
    user = ContainerUser(33, 34, (4, 5), "/var/www")
    process = made(user=user, command=("id",), terminal=True)["process"]
    assert process["user"] == {"uid": 33, "gid": 34, "additionalGids": [34, 4, 5], "umask": 0o022}
    assert made()["process"]["user"]["additionalGids"] == [0]
    assert process["args"] == ["id"]
    assert "HOME=/var/www" in process["env"]
    assert process["terminal"] is True
    assert process["cwd"] == "/"


def test_namespaces_by_network() -> None:
    def kinds(document: dict[str, Any]) -> set[str]:
        return {namespace["type"] for namespace in document["linux"]["namespaces"]}

    assert kinds(made(network="host")) == {"pid", "ipc", "uts", "mount", "cgroup"}
    assert kinds(made(network="none")) == {"pid", "ipc", "uts", "mount", "cgroup", "network"}


def test_what_is_hidden_and_denied() -> None:
    document = made()
    assert {"/proc/kcore", "/proc/keys", "/sys/firmware"} <= set(document["linux"]["maskedPaths"])
    assert {"/proc/sys", "/proc/sysrq-trigger"} <= set(document["linux"]["readonlyPaths"])
    assert document["linux"]["resources"]["devices"][0] == {"allow": False, "access": "rwm"}
    seccomp = document["linux"]["seccomp"]
    assert seccomp["defaultAction"] == "SCMP_ACT_ALLOW"
    denied = {name for rule in seccomp["syscalls"] for name in rule["names"]}
    assert {"bpf", "keyctl", "kexec_load", "io_uring_setup", "clone3", "unshare"} <= denied


def test_system_mounts_are_in_order() -> None:
    targets = [mount["destination"] for mount in made()["mounts"]]
    assert targets.index("/dev") < targets.index("/dev/pts")
    assert targets.index("/sys") < targets.index("/sys/fs/cgroup")
    assert "ro" in mounts(made())["/sys"]["options"]


def test_volumes() -> None:
    volumes = (Volume("/src", "/a/b", read_only=True), Volume("/other", "/a"))
    options = replace(HERE, volumes=volumes, tmpfs=(MemoryFolder("/scratch"),))
    wanted = {each.target: each for each in wanted_mounts(options, "/bundle")}
    assert wanted["/a/b"].for_runtime("/a/b") == {
        "destination": "/a/b",
        "type": "bind",
        "source": "/src",
        "options": ["rbind", "rprivate", "ro"],
    }
    assert "rw" in wanted["/a"].for_runtime("/a")["options"]
    assert wanted["/scratch"].for_runtime("/scratch")["type"] == "tmpfs"


def test_a_volume_takes_the_place_of_a_file_of_ours() -> None:
    options = replace(HERE, volumes=(Volume("/my/hosts", "/etc/hosts"),))
    wanted = [each for each in wanted_mounts(options, "/bundle") if each.target == "/etc/hosts"]
    assert [each.source for each in wanted] == ["/my/hosts"]


def test_name_resolution_by_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container_etc, "_host_file", lambda path: f"text of {path}\n")
    host = container_etc.etc_files(replace(HERE, network="host"))
    assert host["resolv.conf"] == "text of /etc/resolv.conf\n"
    assert host["hosts"] == "text of /etc/hosts\n"
    none = container_etc.etc_files(replace(HERE, network="none"))
    assert "resolv.conf" not in none
    assert "127.0.0.1" in none["hosts"]
    assert none["hostname"] == "here\n"


def test_limits() -> None:
    soft = {limit["type"]: (limit["soft"], limit["hard"]) for limit in made()["process"]["rlimits"]}
    assert soft["RLIMIT_NOFILE"][0] <= soft["RLIMIT_NOFILE"][1] <= 524288
    given = made(rlimits=(("RLIMIT_NOFILE", 10, 20), ("RLIMIT_CORE", 0, 0)))["process"]["rlimits"]
    assert given == [
        {"type": "RLIMIT_NOFILE", "soft": 10, "hard": 20},
        {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
    ]


def test_read_only_root() -> None:
    assert made(read_only=True)["root"] == {"path": "rootfs", "readonly": True}
    assert made()["root"]["readonly"] is False


def test_written_bundle(tmp_path: Path) -> None:
    options = replace(HERE, network="none", env=(("A", "\udcff"),))
    document = runtime_config(RuntimeConfig(cmd=("x",)), ContainerUser(), options)
    before = os.umask(0o077)
    try:
        write_etc_files(str(tmp_path), options)
        write_config(str(tmp_path), document)
    finally:
        os.umask(before)
    assert json.loads((tmp_path / "config.json").read_text()) == document
    assert os.stat(tmp_path / "config.json").st_mode & 0o777 == 0o600
    provided = [each.source for each in wanted_mounts(options, str(tmp_path)) if each.provided]
    assert provided
    for source in provided:
        assert source is not None
        assert os.stat(source).st_mode & 0o777 == 0o644
