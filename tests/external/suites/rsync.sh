# There and back again, with everything that rsync can keep.
source=$(mktemp -d)
back=$(mktemp -d)
trap 'rm -rf "$source" "$back"' EXIT
. "${BASH_SOURCE[0]%/*}/../step.sh"
for d in $(seq 30); do
    mkdir -p "$source/d$d/sub"
    for f in $(seq 40); do head -c $((d * f * 7)) /dev/urandom >"$source/d$d/f$f"; done
    ln "$source/d$d/f1" "$source/d$d/sub/link"
    ln -s "../d$d/f2" "$source/d$d/symlink"
    chmod $((4000 + d * 11 % 700)) "$source/d$d/f3" 2>/dev/null
    chown "$d:$((d + 1))" "$source/d$d/f4"
    touch -d "2001-02-03 04:05:06.$d" "$source/d$d/f5"
done
mkfifo "$source/fifo"
mknod "$source/device" c 1 3
truncate -s 8M "$source/sparse"
printf x | dd of="$source/sparse" bs=1 seek=4000000 conv=notrunc status=none
touch "$source/$(printf 'new\nline')" "$source/$(printf 'bytes\377')"
# Where the temporary directory has neither, both trees are without.
setfattr -n user.colour -v blue "$source/d1/f1" "$source/d2" || true
setfacl -m u:games:r "$source/d1/f2" || true
setfacl -d -m u:games:rwx "$source/d3" || true
same() { # A B: content and everything else
    local differences
    differences=$(rsync -aHAXnic --delete "$1/" "$2/")
    printf '%s\n' "$differences"
    [ -z "$differences" ]
}
step there rsync -aHAX "$source/" "$directory/there/"
step same-there same "$source" "$directory/there"
step sparse-there rsync -aHAXS "$source/" "$directory/sparse/"
step within rsync -aHAX "$directory/there/" "$directory/within/"
step same-within same "$directory/there" "$directory/within"
step back rsync -aHAX "$directory/within/" "$back/"
step same-back same "$source" "$back"
step in-place rsync -aHAX --inplace --no-whole-file --checksum "$source/" "$directory/within/"
step delete rsync -aHAX --delete --exclude 'd2*' "$source/" "$directory/within/"
step hard-links-counted test "$(stat -c %h "$directory/there/d1/f1")" = 2
