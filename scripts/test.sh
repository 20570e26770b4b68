#!/usr/bin/env bash
# Everything that CI runs, step by step. Needs root: it mounts.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ "$(id -u)" != 0 ]; then
    echo "make test mounts filesystems and needs root: sudo make test" >&2
    exit 1
fi
started=$SECONDS
step() {
    printf '\n== %s (at %d s)\n' "$*" $((SECONDS - started))
}

step packages
./scripts/need.sh gcc libc6-dev make fuse3 e2fsprogs xfsprogs btrfs-progs attr acl rsync sqlite3 git util-linux libaio-dev g++ clang llvm python3

step format
cargo fmt --all --check

step lints
cargo clippy --locked --workspace --all-targets -- -D warnings
RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps --document-private-items --quiet

step "unit and integration tests"
cargo build --release --locked -p highwater -p highwater-torture
HIGHWATER=$PWD/target/release/highwater
export HIGHWATER
cargo test --locked --workspace --exclude highwater-simulation

step "simulated crashes, and the mistakes that they must find"
cargo test --locked --release -p highwater-simulation
cargo test --locked --release -p highwater-simulation --features mutants --test mutants

step "the barrier under loom"
RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR=target/loom cargo test --locked --release -p highwater-barrier --test loom

torture=target/release/torture
step "the naive race on ext4, XFS, btrfs and tmpfs"
"$torture" naive-race

step "the oracle, a fixed short share"
for filesystem in ext4 xfs btrfs tmpfs; do
    "$torture" oracle --dir-fs "$filesystem" --seed 1 --rounds 8
done
"$torture" oracle --dir-fs ext4 --seed 2 --rounds 8 --no-passthrough
"$torture" oracle --dir-fs ext4 --seed 3 --rounds 8 --kill
"$torture" oracle --dir-fs btrfs --seed 4 --rounds 8 --kill --no-passthrough
"$torture" oracle --dir-fs xfs --seed 5 --rounds 8 --kill --crash-consumer
"$torture" crash-hole

"$torture" kill-loop --rounds 25 --seed 1

step "kill -9 at chosen system calls, and faults by name"
"$torture" kill-points --seconds 25 --seed 1
"$torture" faults --quick

step "real crash images, a fixed short share"
"$torture" crash-images --on ext4,xfs,btrfs --workload mix,replace,overwrite --seed 0 --states 90 --states-per-run 30 --seconds-per-run 3
broken=$(mktemp -d)
if "$torture" crash-images --on ext4 --workload replace --seed 0 --states 10 --seconds-per-run 2 --break recovered --base "$broken"; then
    echo "crash-images does not notice that the lines of recovery are left out" >&2
    exit 1
fi
rm -rf "$broken"

step "fuzzing guided by coverage, a fixed short share"
./scripts/fuzz.sh all 5 1

step "in place: the write barrier, broken and whole, and the oracle on the source fanotify"
./scripts/bpf.sh --check
"$torture" barrier-in-place --seconds 15
for broken in "writes none" "stalled sleeping" "queued queue"; do
    "$torture" barrier-in-place --seconds 20 --only "${broken% *}" --broken "${broken#* }"
done
in_place=(--track-arg=--source --track-arg=fanotify)
"$torture" naive-race "${in_place[@]}"
seed=1
for filesystem in ext4 xfs btrfs tmpfs; do
    "$torture" oracle --dir-fs "$filesystem" --seed $seed --rounds 5 --outside --kill --skip-lower "${in_place[@]}"
    seed=$((seed + 1))
done
for filesystem in ext4 btrfs; do
    "$torture" oracle --dir-fs "$filesystem" --seed $seed --rounds 5 --stop "${in_place[@]}"
    seed=$((seed + 1))
done

step "the oracle, four at a time at the lowest priority"
# Threads that wait long for their turn show races that an idle machine hides.
pids=()
trap 'kill "${pids[@]}" 2>/dev/null; exit 130' INT TERM
for arguments in "ext4 --kill" "xfs --kill --crash-consumer" "btrfs --kill --outside ${in_place[*]}" "tmpfs --outside ${in_place[*]}"; do
    # shellcheck disable=SC2086 # several arguments
    chrt --idle 0 "$torture" oracle --rounds 6 --seed 6 --dir-fs $arguments &
    pids+=($!)
done
failed=0
for pid in "${pids[@]}"; do wait "$pid" || failed=1; done
trap - INT TERM
[ "$failed" = 0 ]

step "external suites"
tests/external/run.sh "${TMPDIR:-/var/tmp}"

step "done"
