#!/usr/bin/env bash
# Runs external suites on a tracked tree and on the plain filesystem below it, and compares.
# Usage: run.sh PARENT [SUITE...]     See README.md beside this file.
set -u
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repository=$(cd "$here/../.." && pwd)
. "$here/lib.sh"

[ $# -ge 1 ] && [ -d "$1" ] || { sed -n 2,3p "$0"; exit 2; }
[ "$(id -u)" = 0 ] || { echo "run.sh: root is needed" >&2; exit 2; }
parent=$(cd "$1" && pwd)
shift
[ $# -gt 0 ] || set -- pjdfstest fsx stress-ng fio git cargo rsync sqlite
for suite in "$@"; do
    [ -f "$here/suites/$suite.sh" ] || { echo "run.sh: no suite $suite" >&2; exit 2; }
done

highwater=${HIGHWATER:-}
for candidate in "$repository/target/release/highwater" "$repository/target/debug/highwater"; do
    [ -n "$highwater" ] || { [ -x "$candidate" ] && highwater=$candidate; }
done
[ -x "$highwater" ] || { echo "run.sh: no highwater binary; build it or set HIGHWATER" >&2; exit 2; }
read -ra track_args <<<"${HIGHWATER_TRACK_ARGS:-}"

# Short: the path of a Unix socket may have 107 bytes.
work=$(mktemp -d "$parent/hw.XXXXXX")
logs=$(mktemp -d "${TMPDIR:-/tmp}/highwater-external-logs.XXXXXX")
state=$(mktemp -d "${TMPDIR:-/tmp}/highwater-external-state.XXXXXX")
chmod 755 "$work"
mkdir "$work/plain" "$work/mount"
tracker=
failures=0

clean_up() {
    trap - EXIT INT TERM HUP
    # Whatever a suite has left running in the tree, by its own process ids.
    end_suite
    if [ -n "$tracker" ] && kill -0 "$tracker" 2>/dev/null; then
        timeout 60 "$highwater" stop "$work/mount" >>"$logs/tracker.log" 2>&1 || kill -9 "$tracker" 2>/dev/null
        wait "$tracker" 2>/dev/null
    fi
    while mountpoint_of "$work/mount"; do umount -l "$work/mount" || break; done
    rm -rf --one-file-system "$work" "$state"
    if [ "$failures" -gt 0 ]; then echo "logs: $logs"; else rm -rf "$logs"; fi
}
trap clean_up EXIT
trap 'exit 130' INT TERM HUP

start_tracker() {
    : >"$logs/tracker.out"
    "$highwater" track "$work/mount" --state "$state/state" "${track_args[@]}" \
        >"$logs/tracker.out" 2>>"$logs/tracker.log" </dev/null &
    tracker=$!
    for _ in $(seq 300); do
        grep -q '^tracking ' "$logs/tracker.out" && return 0
        kill -0 "$tracker" 2>/dev/null || break
        sleep 0.1
    done
    echo "run.sh: highwater track did not start:" >&2
    tail -5 "$logs/tracker.log" >&2
    failures=1
    exit 1
}

# run_suite SUITE plain|mount: the results go to LOGS/SUITE.WHERE, a line `TEST ok|fail|skip` each.
run_suite() {
    local results="$logs/$1.$2" directory="$work/$2/$1"
    : >"$results"
    mkdir -p "$directory"
    (
        set -m
        results=$results directory=$directory tools=$tools repository=$repository \
            timeout --kill-after=10 "$suite_limit" bash "$here/suites/$1.sh"
    ) >"$results.log" 2>&1 </dev/null &
    suite_pid=$!
    wait "$suite_pid" || echo "suite-itself fail" >>"$results"
    suite_pid=
    rm -rf "$directory" 2>>"$results.log" || echo "removing-the-tree fail" >>"$results"
}

# compare SUITE: what passes below has to pass on the mount.
compare() {
    awk -v suite="$1" -v exclusions="$here/exclusions.txt" '
        BEGIN {
            while ((getline line < exclusions) > 0) {
                if (line ~ /^#/ || line == "") continue
                split(line, field, " ")
                if (field[1] == suite) { reason[field[2]] = substr(line, length(field[1]) + length(field[2]) + 3) }
            }
        }
        FNR == NR { below[$1] = $2; next }
        { above[$1] = $2 }
        END {
            for (test in above) if (!(test in below)) below[test] = "ok"
            for (test in below) {
                # A test that printed nothing on the mount did not pass there.
                is = (test in above) ? above[test] : "fail"
                if (below[test] == "ok" && is == "ok") { passed++ }
                else if (below[test] == "skip" || is == "skip" && below[test] != "ok") { skipped++ }
                else if (below[test] != "ok") { both++; print "    fails below as well: " test }
                else if (test in reason) { excluded++; print "    excluded: " test ": " reason[test] }
                else { failed++; print "    FAILS on the mount only (" is "): " test }
                if (is == "ok" && test in reason) { stale++; print "    STALE exclusion, it passes: " test }
            }
            verdict = failed + stale > 0 || passed == 0 ? "FAIL" : "PASS"
            printf "%s %s: %d passed on both, %d on the mount only failed, %d excluded, %d fail below as well, %d skipped\n", \
                verdict, suite, passed, failed, excluded, both, skipped
            exit verdict == "FAIL"
        }' "$logs/$1.plain" "$logs/$1.mount" | sort -r
    return "${PIPESTATUS[0]}"
}

for suite in "$@"; do prepare "$suite" || { echo "FAIL $suite: cannot install what it needs"; failures=$((failures + 1)); }; done
start_tracker
for suite in "$@"; do
    begun=$SECONDS
    run_suite "$suite" plain
    run_suite "$suite" mount
    if ! kill -0 "$tracker" 2>/dev/null; then
        echo "FAIL $suite: the tracker has ended"
        tail -5 "$logs/tracker.log"
        failures=$((failures + 1))
        while mountpoint_of "$work/mount"; do umount -l "$work/mount" || break; done
        start_tracker
    fi
    compare "$suite" || failures=$((failures + 1))
    echo "    $((SECONDS - begun)) s"
done
echo "$(($# - failures)) passed, $failures failed"
[ "$failures" = 0 ]
