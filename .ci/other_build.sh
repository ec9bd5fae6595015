#!/usr/bin/env bash
# other_build.sh COMMIT FOLDER: builds `planaria` of another commit in a worktree below FOLDER, once, and
# prints where it is. Everything else goes to standard error.
set -euo pipefail
cd "$(dirname "$0")/.."
commit=$(git rev-parse --verify --quiet "$1^{commit}") || { echo "no commit $1 here" >&2; exit 1; }
folder=$2/$commit
binary=$folder/planaria
if [ ! -x "$binary" ]; then
  mkdir -p "$folder"
  git worktree prune
  [ -e "$folder/source/Makefile" ] || git worktree add --detach "$folder/source" "$commit" >&2
  env -u CARGO_TARGET_DIR make -C "$folder/source" build >&2
  cp "$folder/source/target/release/planaria" "$binary"
  git worktree remove --force "$folder/source"
fi
echo "$binary"
