#!/bin/bash
# A wheel may bring files for the prefix that it is installed into (NAME.data/data/...): manual pages into share/man, a unit
# of systemd into lib/systemd/system.  `pip install` puts all of them there.  `pip install --target DIR`, with which programs
# are bundled, takes share/ and etc/ along to DIR, and leaves out lib/ without a word: it installs into a temporary prefix
# first, where the Python packages are in lib/ too, and passes over that folder when it moves what else there is.  So a
# bundle has its manual, but not its unit, and the RECORD that comes with it lists the file that is missing.
#
# Needs: python3 (3.11).  Seen on 2026-11-30 with pip 26.0 and setuptools 80.9.0:
#   --prefix:  lib/systemd/system/tool.service share/tool.txt
#   --target:  share/tool.txt
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
pip=("$work/venv/bin/python" -m pip --disable-pip-version-check)
"${pip[@]}" install -q pip==26.0 setuptools==80.9.0
mkdir "$work/tool"
cd "$work/tool"
touch tool.py tool.service tool.txt
cat >pyproject.toml <<'END'
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "tool"
version = "1"
[tool.setuptools]
py-modules = ["tool"]
[tool.setuptools.data-files]
"share" = ["tool.txt"]
"lib/systemd/system" = ["tool.service"]
END
"${pip[@]}" install -q --no-build-isolation --prefix "$work/prefix" .
"${pip[@]}" install -q --no-build-isolation --target "$work/target" .

files() { (cd "$1" && find . \( -name 'tool.service' -o -name 'tool.txt' \) -printf '%P\n' | sort | xargs); }
echo "--prefix:  $(files "$work/prefix")"
echo "--target:  $(files "$work/target")"
grep -q 'systemd/system/tool.service' "$work"/target/tool-1.dist-info/RECORD
[[ $(files "$work/prefix") == "lib/systemd/system/tool.service share/tool.txt" && $(files "$work/target") == "share/tool.txt" ]]
