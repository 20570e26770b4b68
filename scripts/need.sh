#!/bin/sh
# Makes sure that Debian packages are installed: need.sh PACKAGE... As root with apt it installs what is missing; otherwise it
# prints the one command to run, and fails.
set -eu
missing=
for package in "$@"; do
    status=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
    [ "$status" = installed ] || missing="$missing $package"
done
[ -n "$missing" ] || exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "installing:$missing"
    DEBIAN_FRONTEND=noninteractive
    export DEBIAN_FRONTEND
    apt-get update -q >/dev/null
    # shellcheck disable=SC2086
    exec apt-get install -y -q --no-install-recommends $missing >/dev/null
fi
echo "these packages are missing; please run: sudo apt-get install$missing" >&2
exit 1
