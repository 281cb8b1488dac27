#!/bin/bash
# GNU tar writes sparse files (`-S`) in four forms, which Python's tarfile reads all.  The tar
# crate of Rust (0.4.44) reads the old one; of the three in pax headers it gives the map and the pieces as the content of the
# file, without an error: by its own name in form 0.0, by the name `GNUSparseFile.PID/NAME` in 0.1 and 1.0.  tar-stream and
# tar of npm do the same with those, and of the old form tar-stream gives the pieces as an entry of type null, and tar (as
# `tar.t` shows) nothing at all.  Programs that build images on these libraries hand out other bytes for a file of a layer
# that `tar --posix -S` has made.
#
# Needs: cargo, node with npm, python3, tar.  Seen on 2026-11-30 with tar 0.4.44 (crate), tar-stream 3.2.2 and tar 7.5.23
# (npm), Python 3.11, GNU tar 1.34; bytes that each gives for a file of 3145728 bytes with 8192 in pieces:
#   old:  python 3145728  rust 3145728  tar-stream 8192  tar none
#   0.0:  python 3145728  rust 8192     tar-stream 8192  tar 8192
#   0.1:  python 3145728  rust 8192     tar-stream 8192  tar 8192
#   1.0:  python 3145728  rust 8704     tar-stream 8704  tar 8704
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
mkdir -p rust/src files
cat >rust/Cargo.toml <<'TOML'
[package]
name = "sizes"
version = "0.1.0"
edition = "2021"

[dependencies]
tar = "=0.4.44"
TOML
cat >rust/src/main.rs <<'RUST'
use std::io::Read;

fn main() {
    let file = std::fs::File::open(std::env::args().nth(1).unwrap()).unwrap();
    for entry in tar::Archive::new(file).entries().unwrap() {
        let mut content = Vec::new();
        entry.unwrap().read_to_end(&mut content).unwrap();
        println!("{}", content.len());
    }
}
RUST
(cd rust && cargo build --quiet --release) >log 2>&1 || { cat log; exit 1; }
npm install --silent --no-audit --no-fund tar-stream@3.2.2 tar@7.5.23 >log 2>&1 || { cat log; exit 1; }
cat >tar-stream.js <<'JS'
const extract = require('tar-stream').extract();
extract.on('entry', (header, stream, next) => {
  let size = 0;
  stream.on('data', (data) => { size += data.length; });
  stream.on('end', () => { console.log(size); next(); });
});
require('fs').createReadStream(process.argv[2]).pipe(extract);
JS
cat >tar.js <<'JS'
let size = 'none';
require('tar').t({ file: process.argv[2], sync: true, onReadEntry: (entry) => { size = entry.size; } });
console.log(size);
JS
cat >sizes.py <<'PY'
import sys
import tarfile

with tarfile.open(sys.argv[1]) as archive:
    for member in archive:
        print(len(archive.extractfile(member).read()))
PY
python3 -c '
with open("files/file", "wb") as file:
    file.seek(1 << 20)
    file.write(b"x" * 5000)
    file.truncate(3 << 20)
'
tar -C files --format=gnu -S -cf old.tar file
for form in 0.0 0.1 1.0; do tar -C files --format=pax -S --sparse-version=$form -cf $form.tar file; done
seen=
for form in old 0.0 0.1 1.0; do
    sizes=("$(python3 sizes.py $form.tar)" "$(rust/target/release/sizes $form.tar)" "$(node tar-stream.js $form.tar)" "$(node tar.js $form.tar)")
    printf '%-5s python %-8s rust %-8s tar-stream %-5s tar %s\n' "$form:" "${sizes[@]}"
    seen+="${sizes[*]}/"
done
[[ $seen == "3145728 3145728 8192 none/3145728 8192 8192 8192/3145728 8192 8192 8192/3145728 8704 8704 8704/" ]] \
    || { echo "this has changed" >&2; exit 1; }
