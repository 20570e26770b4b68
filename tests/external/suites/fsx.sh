# Random operations on one file, each read verified.
cd "$directory" || exit 1
configurations=$(mktemp -d)
trap 'rm -rf "$configurations"' EXIT
cat >"$configurations/plain.toml" <<'TOML'
TOML
cat >"$configurations/all.toml" <<'TOML'
[weights]
close_open = 1
invalidate = 1
fsync = 1
fdatasync = 1
punch_hole = 5
sendfile = 2
posix_fadvise = 1
copy_file_range = 5
TOML
cat >"$configurations/unsynced.toml" <<'TOML'
nomsyncafterwrite = true
[weights]
close_open = 2
mapwrite = 30
TOML
for configuration in plain all unsynced; do
    for seed in 1 2 3; do
        if timeout 120 "$tools/bin/fsx" -q -f "$configurations/$configuration.toml" -N 1500 -S $seed -P "$configurations" \
            "file-$configuration-$seed"; then
            echo "$configuration-$seed ok" >>"$results"
        else
            echo "$configuration-$seed fail" >>"$results"
        fi
    done
done
