# What run.sh needs and the suites do not: installing, limits, processes. Sourced.
tools=${HIGHWATER_TOOLS:-${XDG_CACHE_HOME:-$HOME/.cache}/highwater-tools}
# Seconds that one suite may take on one tree.
suite_limit=${HIGHWATER_SUITE_LIMIT:-600}
suite_pid=

apt_need() { # COMMAND PACKAGE...
    command -v "$1" >/dev/null && return 0
    shift
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$@" >/dev/null 2>&1 ||
        { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$@" >/dev/null; }
}

cargo_need() { # CRATE VERSION
    [ -x "$tools/bin/$1" ] && "$tools/bin/$1" --version 2>/dev/null | grep -qF "$2" && return 0
    cargo install --quiet --locked --root "$tools" "$1" --version "$2"
}

prepare() { # SUITE
    case $1 in
    pjdfstest) { [ -e /usr/include/sys/acl.h ] || apt_need no-such-command libacl1-dev; } && cargo_need pjdfstest 0.2.2 ;;
    fsx) cargo_need fsx 0.3.2 ;;
    stress-ng) apt_need stress-ng stress-ng ;;
    fio) apt_need fio fio ;;
    git) apt_need git git ;;
    rsync) apt_need rsync rsync && apt_need setfattr attr && apt_need setfacl acl ;;
    sqlite) apt_need sqlite3 sqlite3 ;;
    esac
}

mountpoint_of() { # DIRECTORY: whether something is mounted exactly there; does not touch it
    awk -v at="$1" '$5 == at { found = 1 } END { exit !found }' /proc/self/mountinfo
}

end_suite() {
    [ -n "$suite_pid" ] || return 0
    # The suite is in a process group of its own.
    local group
    for group in $(ps -o pgid= --ppid "$suite_pid" 2>/dev/null | sort -u); do
        [ "$group" != "$$" ] && kill -9 -- "-$group" 2>/dev/null
    done
    kill -9 "$suite_pid" 2>/dev/null
    wait "$suite_pid" 2>/dev/null
}
