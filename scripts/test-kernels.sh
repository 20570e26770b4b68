#!/usr/bin/env bash
# The write barrier in place, and the fanotify source, on other kernels: each is booted in an emulated machine, with the binaries and what
# they need in its initial file system, and must pass. Prints one line for each kernel. Needs no KVM, and takes some minutes.
#
#   scripts/test-kernels.sh [PACKAGE...]      Debian packages of kernels; by default those of 6.1 and 6.12
#   PROFILE=dev                               builds without optimisation
set -euo pipefail
cd "$(dirname "$0")/.."
profile=${PROFILE:-release}
target=${CARGO_TARGET_DIR:-target}
work=$target/kernels
seconds_max=1500
[ $# -gt 0 ] || set -- linux-image-6.1 linux-image-6.12

./scripts/need.sh qemu-system-x86 busybox-static kmod cpio xz-utils e2fsprogs xfsprogs btrfs-progs util-linux python3
PATH=$PATH:/usr/sbin:/sbin
mkdir -p "$work"
log=$work/build.log
cargo build --locked --profile "$profile" -p highwater -p highwater-torture 2>"$log" || { cat "$log" >&2; exit 1; }
cargo test --locked -p highwater-inplace --no-run 2>"$log" || { cat "$log" >&2; exit 1; }
test_binary() { # NAME
    sed -n "s/.*Executable tests\/$1.rs (\(.*\))/\1/p" "$log"
}
built=$target/$([ "$profile" = dev ] && echo debug || echo "$profile")

# Puts a program, and the libraries that it loads, into a directory that becomes the root.
pack() { # ROOT PROGRAM [NAME]
    install -D "$2" "$1/bin/${3:-$(basename "$2")}"
    { ldd "$2" 2>/dev/null | grep -o '/[^ ]*' || true; } | sort -u | while read -r library; do
        [ -e "$1$library" ] || install -D "$library" "$1$library"
    done
}

# Python, with its library: that of the package, whatever else is in the path.
pack_python() { # ROOT
    local python library extension
    python=$(readlink -f /usr/bin/python3)
    library=$("$python" -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')
    pack "$1" "$python" python3
    mkdir -p "$1$library"
    tar -C "$library" --exclude=test --exclude=__pycache__ --exclude='config-*' --exclude=idlelib -c . | tar -C "$1$library" -x
    for extension in "$library"/lib-dynload/*.so; do
        pack "$1" "$extension"
        rm "$1/bin/$(basename "$extension")"
    done
}

# The newest package whose name begins so, unpacked; prints the version.
kernel() { # PREFIX
    local package version
    package=$(apt-cache search --names-only "^${1}[.0-9+a-z-]*-amd64\$" | cut -d ' ' -f 1 | grep -v -E 'cloud|rt-|dbg' |
        grep -E "^${1}\." | sort -V | tail -n 1)
    [ -n "$package" ] || { echo "no package $1*: apt-get update" >&2; return 1; }
    version=${package#linux-image-}
    if [ ! -e "$work/$version/boot/vmlinuz-$version" ]; then
        (cd "$work" && apt-get download -q "$package" >/dev/null 2>&1 && dpkg-deb -x "$package"_*.deb "$version")
    fi
    echo "$version"
}

init() { # what runs in the machine; prints "step: STEP: ok|FAILED"
    cat <<'INIT'
#!/bin/busybox sh
/bin/busybox --install -s /bin 2>/dev/null
export PATH=/bin TMPDIR=/tmp RUST_BACKTRACE=0 PYTHONHOME=/usr
mount -t proc none /proc; mount -t sysfs none /sys; mount -t devtmpfs none /dev
mkdir -p /dev/pts; mount -t devpts none /dev/pts; mount -t tmpfs none /tmp; mount -t tmpfs none /var/tmp
ip link set lo up
while read -r module; do insmod "/modules/$module" || echo "step: $module: FAILED"; done </modules/order
step() { # NAME COMMAND...
    name=$1; shift
    if "$@" >/tmp/log 2>&1; then
        echo "step: $name: ok: $(grep -h -E '^test result|barriers in|passed' /tmp/log | tail -n 1)"
    else
        echo "step: $name: FAILED ($?)"; tail -n 60 /tmp/log
    fi
}
echo 20000 >/proc/sys/fs/inotify/max_user_watches
ulimit -n 4096
. /steps
echo "step: end: ok"
poweroff -f
INIT
}

steps() { # VERSION
    local rings="" skip=""
    if [ "$(printf '%s\n6.3\n' "$1" | sort -V | head -n 1)" != 6.3 ]; then
        # Before 6.3 there is no barrier where a program uses io_uring, and it says so.
        rings=--no-rings
        skip="--skip io_uring --skip ring --skip linked --skip direct_write"
        echo "refuses() { ! torture barrier-in-place --dir-fs tmpfs --seconds 5 --only writes && grep 'before 6.3' /tmp/log; }"
        echo "step 'refuses where io_uring is in use' refuses"
    fi
    echo "step 'barrier --filesystem' highwater barrier --filesystem /tmp"
    for filesystem in tmpfs ext4 xfs; do
        echo "step 'barrier-in-place on $filesystem' torture barrier-in-place --dir-fs $filesystem --seconds 15 $rings"
    done
    echo "step 'broken: none' torture barrier-in-place --dir-fs ext4 --seconds 60 --only writes --broken none $rings"
    echo "step 'tests of the barrier' barrier-tests --test-threads 1 $skip"
    echo "step 'tests of the fanotify source' fanotify-tests --test-threads 1"
}

machine() { # VERSION
    local version=$1 modules=$work/$1
    root=$(mktemp -d "$work/root.XXXXXX")
    mkdir -p "$root"/{bin,dev,proc,sys,tmp,var/tmp,modules,etc}
    echo root:x:0:0:root:/:/bin/sh >"$root/etc/passwd"
    echo root:x:0: >"$root/etc/group"
    ln -s /proc/self/mounts "$root/etc/mtab"
    install -D /bin/busybox "$root/bin/busybox"
    # Not that of busybox, which takes its own programs before those in the path.
    pack "$root" /bin/dash sh
    # The tests ask for these as users of the machine, who are not all root.
    chmod 755 "$root"
    chmod 1777 "$root/tmp" "$root/var/tmp"
    for program in mkfs.ext4 mkfs.xfs mkfs.btrfs btrfs mount umount losetup fsfreeze unshare; do
        pack "$root" "$(command -v "$program")"
    done
    pack_python "$root"
    pack "$root" "$built/highwater"
    pack "$root" "$built/torture"
    pack "$root" "$(test_binary barrier)" barrier-tests
    pack "$root" "$(test_binary fanotify)" fanotify-tests
    depmod -b "$modules" "$version"
    for module in loop ext4 xfs btrfs overlay; do
        { modprobe -d "$modules" -S "$version" --show-depends "$module" || true; } | sed -n 's/^insmod \([^ ]*\).*/\1/p'
    done | awk '!seen[$0]++' | while read -r module; do
        name=$(basename "$module" .xz)
        case $module in
        *.xz) xz -dc "$module" >"$root/modules/$name" ;;
        *) cp "$module" "$root/modules/$name" ;;
        esac
        echo "$name"
    done >"$root/modules/order"
    init >"$root/init"
    chmod +x "$root/init"
    steps "$version" >"$root/steps"
    (cd "$root" && find . | cpio -o -H newc --quiet) | gzip -1 >"$work/$version.initrd"
    rm -rf "$root"
    timeout "$seconds_max" qemu-system-x86_64 -accel tcg -cpu max,-cx16 -smp 2 -m 3072 -nographic -no-reboot -nic none \
        -kernel "$modules/boot/vmlinuz-$version" -initrd "$work/$version.initrd" \
        -append "console=ttyS0 quiet panic=-1 rdinit=/init" </dev/null >"$work/$version.log" 2>&1 || true
}

root=
trap '[ -z "$root" ] || rm -rf "$root"' EXIT
failed=0
for prefix in "$@"; do
    version=$(kernel "$prefix")
    begun=$SECONDS
    machine "$version"
    results=$(tr -d '\r' <"$work/$version.log" | sed -n 's/.*step: //p')
    if grep -q FAILED <<<"$results" || ! grep -q '^end: ok' <<<"$results"; then
        failed=1
        echo "$version: FAILED: $(grep FAILED <<<"$results" | paste -s -d ';'); see $work/$version.log"
    else
        echo "$version: PASS in $((SECONDS - begun)) s: $(grep -v '^end' <<<"$results" | sed 's/: ok:.*//' | paste -s -d ',' | sed 's/,/, /g')"
    fi
done
exit $failed
