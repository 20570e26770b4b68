# A real repository, and one with thousands of files.
cd "$directory" || exit 1
export GIT_CONFIG_GLOBAL=/dev/null GIT_AUTHOR_NAME=t GIT_AUTHOR_EMAIL=t@localhost GIT_COMMITTER_NAME=t GIT_COMMITTER_EMAIL=t@localhost
export GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0=safe.directory GIT_CONFIG_VALUE_0='*'
. "${BASH_SOURCE[0]%/*}/../step.sh"
clean() { [ -z "$(git -C "$1" status --porcelain)" ]; }
step clone git clone -q --no-hardlinks "$repository" real
step fsck git -C real fsck --full --strict
step status clean real
step local-clone git clone -q real linked
step gc git -C real gc -q --prune=now
step fsck-after-gc git -C real fsck --full
git init -q many
for d in $(seq 40); do
    mkdir -p "many/d$d"
    for f in $(seq 100); do echo "$d $f" >"many/d$d/f$f"; done
done
step add git -C many add .
step commit git -C many commit -qm one
step branch git -C many checkout -qb other
find many/d* -name 'f*7' -exec sh -c 'echo changed >>"$1"' _ {} \;
changed_is_seen() { [ "$(git -C many status --porcelain | wc -l)" = 400 ]; }
step changes-are-seen changed_is_seen
step commit-again git -C many commit -qam two
step switch-back git -C many checkout -q -
step status-after-switch clean many
step merge git -C many merge -q other
step stash-nothing git -C many stash list
step worktree git -C many worktree add -q ../worktree HEAD
step status-in-worktree clean worktree
step fsck-many git -C many fsck --full --strict
