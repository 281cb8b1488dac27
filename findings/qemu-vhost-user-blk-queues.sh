#!/bin/bash
# A disk of qemu-storage-daemon by vhost-user-blk has one queue unless the export says num-queues.  QEMU as its user asks
# for as many queues as the machine has processors, and then does not start at all with more than one: the shortest lines
# that work with -smp 1 fail with -smp 2, until the device has num-queues=1 or the export as many.
#
# Needs: Debian 12's qemu-system-x86 and qemu-system-common; no KVM, no guest.  Seen on 2026-11-30 with QEMU
# 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3), from which this says:
#   -smp 1:                                starts
#   -smp 2:                                The maximum number of queues supported by the backend is 1
#   -smp 2, num-queues=1 of the device:    starts
#   -smp 2, num-queues=2 of the export:    starts
set -euo pipefail
work=$(mktemp -d)
daemon=
trap '[[ -z $daemon ]] || kill "$daemon" 2>/dev/null || true; rm -rf "$work"' EXIT
truncate -s 1M "$work/disk"
qemu-system-x86_64 --version | head -1

export_disk() { # EXPORT OPTIONS: offers the disk at $work/socket
    rm -f "$work/socket" "$work/pid"
    qemu-storage-daemon --blockdev "driver=file,node-name=disk,read-only=on,filename=$work/disk" \
        --export "type=vhost-user-blk,id=e,node-name=disk,addr.type=unix,addr.path=$work/socket$1" \
        --pidfile "$work/pid" --daemonize
    daemon=$(<"$work/pid")
}

start() { # PROCESSORS DEVICE OPTIONS: what QEMU says, or "starts"
    local said
    if said=$(echo '{"execute":"qmp_capabilities"}{"execute":"quit"}' | qemu-system-x86_64 -nodefaults -display none -S \
        -qmp stdio -accel tcg -smp "$1" -m 64M -object memory-backend-memfd,id=m,size=64M,share=on -numa node,memdev=m \
        -chardev "socket,id=c,path=$work/socket" -device "vhost-user-blk-pci,chardev=c$2" 2>&1 >/dev/null); then
        echo starts
    else
        echo "${said##*: }"
    fi
    kill "$daemon" && tail --pid="$daemon" -f /dev/null
    daemon=
}

export_disk ""; one=$(start 1 "")
export_disk ""; two=$(start 2 "")
export_disk ""; device=$(start 2 ",num-queues=1")
export_disk ",num-queues=2"; exported=$(start 2 "")
echo "-smp 1:                                $one"
echo "-smp 2:                                $two"
echo "-smp 2, num-queues=1 of the device:    $device"
echo "-smp 2, num-queues=2 of the export:    $exported"
[[ $one == starts && $two == "The maximum number of queues supported by the backend is 1" && $device == starts &&
    $exported == starts ]] || { echo "this has changed" >&2; exit 1; }
