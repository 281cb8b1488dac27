#!/bin/bash
# `fsck.erofs --extract` (erofs-utils 1.5, Debian 12) ends with 0 and leaves a tree that is not the image's: two names of one
# file become two files, extended attributes are gone, holes are filled, and a set-uid file is set-uid no more, since its owner
# is set after its mode.  The kernel's mount of the same image has all of it.  So an extraction is no oracle for a tree, nor
# a way to unpack one.
#
# Needs: root (to keep owners, and to mount), apt-get, Linux 6.12 or newer.  Seen on 2026-11-30 with Debian's erofs-utils 1.5-1:
#   the mount:   one file by two names, mode 4755, attribute there
#   extracted:   two files, mode 755, attribute gone, 8192 KiB for 8 MiB of hole
set -euo pipefail
[[ $(id -u) == 0 ]] || { echo "needs root" >&2; exit 1; }
work=$(mktemp -d)
trap 'umount "$work/mnt" 2>/dev/null || true; rm -rf "$work"' EXIT
cd "$work"
chmod 755 .
for package in erofs-utils=1.5-1 liblz4-1 libselinux1 libuuid1 libpcre2-8-0; do
    apt-get download -qq "$package" 2>>log || { cat log; exit 1; }
done
for package in *.deb; do dpkg-deb -x "$package" root; done
export LD_LIBRARY_PATH=$work/root/usr/lib/x86_64-linux-gnu:$work/root/lib/x86_64-linux-gnu
mkdir tree mnt
echo hello >tree/a && chmod 4755 tree/a && ln tree/a tree/b
python3 -c 'import os; os.setxattr("tree/a", "user.key", b"value")'
truncate -s 8M tree/hole
root/usr/bin/mkfs.erofs -T0 image.erofs tree >log 2>&1
root/usr/bin/fsck.erofs --extract=out image.erofs >log 2>&1
mount -t erofs -o ro image.erofs mnt

show() { # FOLDER
    python3 - "$1" <<'PY'
import os
import sys

a, b, hole = (os.stat(os.path.join(sys.argv[1], name)) for name in ("a", "b", "hole"))
files = "one file by two names" if a.st_ino == b.st_ino else "two files"
attribute = "there" if os.listxattr(os.path.join(sys.argv[1], "a")) else "gone"
print(f"{files}, mode {a.st_mode & 0o7777:o}, attribute {attribute}", end="")
if sys.argv[1] == "out":
    print(f", {hole.st_blocks // 2} KiB for 8 MiB of hole", end="")
PY
}
mounted=$(show mnt)
extracted=$(show out)
echo "the mount:   $mounted"
echo "extracted:   $extracted"
[[ $mounted == "one file by two names, mode 4755, attribute there" ]] || { echo "this has changed" >&2; exit 1; }
[[ $extracted == "two files, mode 755, attribute gone, 8192 KiB for 8 MiB of hole" ]] || { echo "this has changed" >&2; exit 1; }
