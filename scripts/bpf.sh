#!/usr/bin/env bash
# The BPF objects are committed, so that building Highwater needs no clang. This makes them anew, and records what they were made of.
# With --check: the records agree with the files; and where clang is the one of the record, the objects come out the same.
set -euo pipefail
cd "$(dirname "$0")/../crates/inplace/bpf"

compiler() {
    clang --version 2>/dev/null | sed -n 's/.*clang version \([0-9.]*\).*/clang \1/p'
}
sources() { # NAME
    case $1 in
    scan) echo kernel.h scan.bpf.c ;;
    *) echo "$1.bpf.c" ;;
    esac
}
build() { # NAME OUTPUT
    clang -O2 -g -target bpf -mcpu=v3 -Wall -Werror -fdebug-compilation-dir=. -c "$1.bpf.c" -o "$2"
    llvm-strip -g "$2"
}
record() { # NAME
    compiler
    # shellcheck disable=SC2046
    sha256sum $(sources "$1") "$1.bpf.o"
}
check() { # NAME
    if ! tail -n +2 "$1.sums" | sha256sum --check --quiet -; then
        echo "bpf.sh: $1: source and object do not belong together: make bpf" >&2
        exit 1
    fi
    made_with=$(head -n 1 "$1.sums")
    if [ "$(compiler)" = "$made_with" ] && command -v llvm-strip >/dev/null; then
        build "$1" "$again"
        cmp "$again" "$1.bpf.o" || {
            echo "bpf.sh: $1: the object is not what its source gives: make bpf" >&2
            exit 1
        }
        echo "bpf.sh: $1: the object is what its source gives, with $made_with"
    else
        echo "bpf.sh: $1: the record agrees; not built again, since that takes $made_with with llvm-strip"
    fi
}

again=$(mktemp)
trap 'rm -f "$again"' EXIT
for source in *.bpf.c; do
    name=${source%.bpf.c}
    if [ "${1:-}" = --check ]; then
        check "$name"
    else
        build "$name" "$name.bpf.o"
        record "$name" >"$name.sums"
    fi
done
