#!/usr/bin/env bash
# The oracle with a new seed each time, for a number of seconds, half of the runs with kills: torture.sh FILESYSTEM SECONDS
set -euo pipefail
cd "$(dirname "$0")/.."
filesystem=$1
seconds=$2
cargo build --release --locked -p highwater -p highwater-torture
seed=$(date +%s)
until [ "$SECONDS" -ge "$seconds" ]; do
    for kill in "" --kill; do
        # shellcheck disable=SC2086
        target/release/torture oracle --dir-fs "$filesystem" --seed "$seed" --seconds 60 $kill
        seed=$((seed + 1))
    done
done
