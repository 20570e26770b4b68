# POSIX semantics, system call by system call. Two users that every Debian has stand for "another user".
cd / && export RUST_BACKTRACE=0
configuration=$(mktemp)
trap 'rm -f "$configuration"' EXIT
cat >"$configuration" <<'TOML'
[features]
posix_fallocate = {}
rename_ctime = {}
stat_st_birthtime = {}
utime_now = {}
utimensat = {}
[settings]
naptime = 0.02
allow_remount = false
[dummy_auth]
entries = [["nobody", "nogroup"], ["games", "games"]]
TOML
chmod 755 "$directory"
"$tools/bin/pjdfstest" -c "$configuration" -p "$directory" 2>&1 | tee "$results.out"
awk '$2 == "ok" { print $1, "ok" } $2 == "FAILED" { print $1, "fail" } $2 == "skipped" { print $1, "skip" }' \
    "$results.out" >>"$results"
