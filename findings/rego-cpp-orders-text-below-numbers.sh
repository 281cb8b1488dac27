#!/bin/bash
# Rego compares values of different types by a fixed order of the types, in which every number comes before every text.
# rego-cpp (regopy 1.5.2 from PyPI) has it the other way round.  A policy of a key broker that compares a release which
# came as text, `data.query.release >= 7`, is false for every text there and true for every text in Open Policy Agent
# 1.22.4 and in regorus, so that it looks strict when it is tried with the one and gives every key away with the others.
#
# Needs: python3 with venv, go.  Seen on 2026-11-30:
#   regopy 1.5.2:  "7" >= 7  undefined     opa 1.22.4:  true
#   regopy 1.5.2:  7 < "1"   undefined     opa 1.22.4:  true
#   regopy 1.5.2:  [1] > 5   true          opa 1.22.4:  true
set -euo pipefail
work=$(mktemp -d)
trap 'chmod -R u+w "$work" && rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q regopy==1.5.2
GOBIN=$work CGO_ENABLED=0 GOFLAGS=-modcacherw go install github.com/open-policy-agent/opa@v1.22.4 2>"$work/log" || { cat "$work/log"; exit 1; }

cpp() { "$work/venv/bin/python" -c 'import sys; from regopy import Interpreter; print(Interpreter().query(sys.argv[1]))' "$1"; }
opa() { "$work/opa" eval --format raw "$1"; }
failed=0
expect() { # EXPRESSION WORD-IN-REGO-CPP WORD-IN-OPA
    local one two
    one=$(cpp "$1") two=$(opa "$1")
    echo "$1   rego-cpp: ${one:-nothing}   opa: ${two:-nothing}"
    [[ $one == *"$2"* && $two == *"$3"* ]] || failed=1
}
expect '"7" >= 7' undefined true
expect '7 < "1"' undefined true
expect '[1] > 5' true true
[[ $failed == 0 ]] || { echo "this has changed" >&2; exit 1; }
