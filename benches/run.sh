#!/usr/bin/env bash
# Builds the product and the benchmark, installs the peers that are missing, and prints the tables as Markdown.
# Usage: benches/run.sh [ARGUMENTS OF torture bench]      for example --rounds 3 --only mount --out result.md
set -eu
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ "$(id -u)" = 0 ] || { echo "run.sh: root is needed (mounts, drop_caches)" >&2; exit 2; }
missing=()
for program in bindfs mergerfs fio rsync git watchman inotifywait fatrace python3; do
    command -v $program >/dev/null || missing+=("$program")
done
if [ ${#missing[@]} -gt 0 ]; then
    apt-get update -qq
    for package in "${missing[@]}"; do
        package=${package/inotifywait/inotify-tools}
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$package" >/dev/null || echo "run.sh: without $package" >&2
    done
fi
cargo build --release --quiet -p highwater -p highwater-torture
exec "${CARGO_TARGET_DIR:-target}/release/torture" bench "$@"
