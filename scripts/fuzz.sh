#!/usr/bin/env bash
# Fuzzing guided by coverage, on stable Rust: fuzz.sh TARGET|all SECONDS [SEED]. Without a seed a new one; what was found before is
# gone on from. An input that fails is kept and printed, with the command that repeats it.
#
# The flags are those that cargo-fuzz passes, without the sanitizer, which needs a nightly compiler (there is next to no unsafe code below the
# targets), and without the tracing of compared values, which makes a look over a segment full of zeros ten times as slow.
set -euo pipefail
cd "$(dirname "$0")/.."
wanted=${1:?a target, or all}
seconds=${2:?seconds for each target}
seed=${3:-$(date +%s)}
./scripts/need.sh g++
directory=$PWD/${CARGO_TARGET_DIR:-target}
case ${CARGO_TARGET_DIR:-} in /*) directory=$CARGO_TARGET_DIR ;; esac
directory=$directory/fuzz

host=$(rustc -vV | sed -n 's/^host: //p')
flags="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters"
flags="$flags -Cllvm-args=-sanitizer-coverage-pc-table"
# --target, so that build scripts and macros are built without the flags.
RUSTFLAGS=$flags CARGO_TARGET_DIR=$directory cargo build --release --target "$host" --manifest-path crates/fuzz/engine/Cargo.toml
engine=$directory/$host/release/highwater-fuzz-engine
failed=0
tried=0
while read -r target bytes_max; do
    [ "$wanted" = all ] || [ "$wanted" = "$target" ] || continue
    tried=$((tried + 1))
    work=$directory/$target
    mkdir -p "$work/corpus" "$work/failed"
    printf '\n-- %s for %d s, seed %d\n' "$target" "$seconds" "$seed"
    # A panic ends the run; -timeout ends one that loops; the memory of the target itself is bounded in crates/fuzz/src/lib.rs.
    if ! HIGHWATER_FUZZ_TARGET=$target "$engine" "$work/corpus" "$work/seeds" -dict="$work/words" -max_total_time="$seconds" \
        -max_len="$bytes_max" -seed="$seed" -timeout=25 -rss_limit_mb=768 -artifact_prefix="$work/failed/" \
        -print_final_stats=1 >"$work/log" 2>&1; then
        failed=1
        tail -n 60 "$work/log"
        input=$(sed -n 's/.*Test unit written to //p' "$work/log" | tail -n 1)
        printf '\n%s failed. Again, without the fuzzer: cargo run -p highwater-fuzz -- %s %s\n' "$target" "$target" "$input"
    fi
    grep -E 'INITED|DONE|stat::(number_of_executed_units|average_exec_per_sec|peak_rss_mb)' "$work/log" || true
done < <(HIGHWATER_FUZZ_PREPARE=$directory "$engine")
if [ "$tried" = 0 ]; then
    echo "fuzz.sh: there is no target $wanted" >&2
    exit 2
fi
exit "$failed"
