#!/usr/bin/env bash
# The BPF object is committed, so that building Highwater needs no clang. This makes it anew, and records what it was made of.
# With --check: the record agrees with the files; and where clang is the one of the record, the object comes out the same.
set -euo pipefail
cd "$(dirname "$0")/../crates/inplace/bpf"

compiler() {
    clang --version 2>/dev/null | sed -n 's/.*clang version \([0-9.]*\).*/clang \1/p'
}
build() { # OUTPUT
    clang -O2 -g -target bpf -mcpu=v3 -Wall -Werror -fdebug-compilation-dir=. -c scan.bpf.c -o "$1"
    llvm-strip -g "$1"
}
record() {
    compiler
    sha256sum kernel.h scan.bpf.c scan.bpf.o
}

if [ "${1:-}" != --check ]; then
    build scan.bpf.o
    record >scan.sums
    exit
fi
if ! tail -n +2 scan.sums | sha256sum --check --quiet -; then
    echo "bpf.sh: source and object do not belong together: make bpf" >&2
    exit 1
fi
made_with=$(head -n 1 scan.sums)
if [ "$(compiler)" = "$made_with" ] && command -v llvm-strip >/dev/null; then
    again=$(mktemp)
    trap 'rm -f "$again"' EXIT
    build "$again"
    cmp "$again" scan.bpf.o || {
        echo "bpf.sh: the object is not what its source gives: make bpf" >&2
        exit 1
    }
    echo "bpf.sh: the object is what its source gives, with $made_with"
else
    echo "bpf.sh: the record agrees; not built again, since that takes $made_with with llvm-strip"
fi
