#!/usr/bin/env bash
# Runs the fuzz targets: run.sh PROGRAM FOLDER SECONDS [TARGET...], all targets if none is named.
# What was reached is kept in FOLDER/corpus, what broke in FOLDER/found.
set -euo pipefail

program=$1 folder=$2 seconds=$3
shift 3
# An input that takes this long hangs.
readonly hang_seconds=5
# The program itself takes about 150 MB.
readonly memory_mb=1024
readonly longest_input=4096

mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
if (($# == 0)); then
    # What libFuzzer says on the way is that sanitizers are missing, which stable Rust has not.
    targets=$(PLANARIA_FUZZ_TARGET=list "$program" 2>/dev/null) || {
        echo "$program does not run" >&2
        exit 1
    }
    # shellcheck disable=SC2086 # one word each
    set -- $targets
fi

# The targets' files, in memory where the system has such. They leave them behind.
TMPDIR=$(mktemp -d -p /dev/shm 2>/dev/null || mktemp -d)
export TMPDIR
trap 'rm -rf "$TMPDIR"' EXIT

# One target; its log is kept beside its corpus.
fuzz() {
    local target=$1 log="$folder/log/$1"
    mkdir -p "$folder"/{log,found} "$folder/corpus/$target"
    PLANARIA_FUZZ_TARGET=$target PLANARIA_FUZZ_SEEDS=$folder/seeds/$target \
        "$program" "$folder/corpus/$target" "$folder/seeds/$target" \
        -max_total_time="$seconds" -timeout="$hang_seconds" -rss_limit_mb="$memory_mb" \
        -max_len="$longest_input" -artifact_prefix="$folder/found/$target-" \
        -print_final_stats=1 -verbosity=1 -close_fd_mask=0 >"$log" 2>&1 || return 1
}

report() {
    local target=$1 state=$2 log="$folder/log/$1"
    local runs covered
    runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    # The last such line: "#123 REDUCE cov: 45 ft: 67 corp: 8/9b ..."
    covered=$(grep -o 'cov: [0-9]* ft: [0-9]* corp: [0-9]*' "$log" | tail -1 || true)
    printf '%-13s %-7s %9s runs  %s\n' "$target" "$state" "${runs:-?}" "$covered"
}

# As many at once as there are cores.
failed=()
running=()
declare -A target_of
collect() {
    local pid state=0
    wait -n -p pid "${running[@]}" || state=$?
    local target=${target_of[$pid]} rest=() other
    for other in "${running[@]}"; do [ "$other" = "$pid" ] || rest+=("$other"); done
    running=("${rest[@]}")
    if [ "$state" = 0 ]; then
        report "$target" ok
    else
        report "$target" FAILED
        failed+=("$target")
    fi
}
for target in "$@"; do
    ((${#running[@]} < $(nproc))) || collect
    fuzz "$target" &
    running+=($!)
    target_of[$!]=$target
done
while ((${#running[@]} > 0)); do collect; done

for target in "${failed[@]}"; do
    printf '\n%s failed; of %s:\n' "$target" "$folder/log/$target" >&2
    grep -A 2 'panicked at\|overflowed its stack\|memory allocation\|ERROR: libFuzzer' \
        "$folder/log/$target" | head -n 20 >&2 || true
    printf 'again: PLANARIA_FUZZ_TARGET=%s %s %s\n' "$target" "$program" \
        "$(ls -t "$folder/found/$target-"* 2>/dev/null | head -1)" >&2
done
((${#failed[@]} == 0))
