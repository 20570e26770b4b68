# step NAME COMMAND...: runs a command or a shell function and notes `NAME ok` or `NAME fail`. Sourced by the suites.
step() {
    local name=$1 verdict=ok
    shift
    if [ "$(type -t "$1")" = function ]; then "$@" || verdict=fail; else timeout 200 "$@" || verdict=fail; fi
    echo "$name $verdict" >>"$results"
}
