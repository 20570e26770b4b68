# Several writers at once, one of them killed; the database checks itself.
cd "$directory" || exit 1
. "${BASH_SOURCE[0]%/*}/../step.sh"
write() { # DATABASE WRITER
    for round in $(seq 60); do
        sqlite3 -cmd ".timeout 20000" "$1" "BEGIN IMMEDIATE;
            WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 40)
            INSERT INTO t(writer, round, data) SELECT $2, $round, hex(randomblob(100)) FROM n;
            DELETE FROM t WHERE id % 7 = $round % 7 AND writer <> $2 AND round < $round - 20;
            COMMIT;" || return 1
    done
}
for mode in wal delete; do
    database=$mode.db
    sqlite3 "$database" "PRAGMA journal_mode=$mode; CREATE TABLE t(id INTEGER PRIMARY KEY, writer, round, data);
        CREATE INDEX i ON t(writer, round);" >/dev/null
    writers=()
    for writer in 1 2 3; do
        write "$database" $writer &
        writers+=($!)
    done
    # A fourth that dies in the middle.
    (while :; do sqlite3 -cmd ".timeout 20000" "$database" "INSERT INTO t(writer, round, data) VALUES (4, 0, hex(randomblob(5000)))"; done) &
    victim=$!
    sleep 1
    kill -9 $victim
    wait $victim 2>/dev/null
    good=0
    for writer in "${writers[@]}"; do wait "$writer" || good=1; done
    step "$mode-writers" test $good = 0
    checked() { [ "$(sqlite3 -cmd ".timeout 20000" "$database" 'PRAGMA integrity_check')" = ok ]; }
    step "$mode-integrity" checked
    counted() { [ "$(sqlite3 "$database" "SELECT count(DISTINCT round) FROM t WHERE writer = 1 AND round > 40")" = 20 ]; }
    step "$mode-nothing-lost" counted
    sqlite3 "$database" "VACUUM" && step "$mode-integrity-after-vacuum" checked
done
