#!/usr/bin/env bash
# Golden checkpoints, then prefill and decode beside mlx-lm, on a machine that may have an accelerator and needs no
# network; one table. Takes what pack.sh has put into carried. See README.md.
#
#   run.sh [--small]
#
#   --small   a model of a million parameters in place of 1B and 8B, and shorter; so it is without an accelerator anyway
#   PYTHON    the Python to begin with (default: python3)
#   OUT       a folder, which is there: table.txt and log.txt are kept in it
#   TMPDIR    what models and wheels are put in, for as long as this runs; by default memory where 48 GiB are free
#   SECONDS_IN_ALL  after so many all has ended (default: 280)
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=${here%/tests/device}
readonly here root carried=$here/carried

readonly in_all=${SECONDS_IN_ALL:-280}
# For the table and for removing what was unpacked.
readonly at_the_end=5
# No part may take more, whatever is left. Golden checkpoints took some seconds on two cores.
readonly setup_seconds=90 golden_seconds=60
# Turns of a model, as long as its share of the time lasts; and measurements of a turn, after one that does not count.
readonly turns=3 repetitions=2
prompt=512 decode=64
readonly memory_gib=48 eight_mib=65536

failed=() undone=()
declare -A packed=()
small='' work='' device='' kernels_of='' card_mib=0

say() { printf '[device] after %3d s: %s\n' "$SECONDS" "$*" >&2; }
fail() {
    say "error: $*"
    exit 2
}

main() {
    case ${1:-} in
        '') ;;
        --small) small=1 ;;
        *) fail "usage: run.sh [--small]" ;;
    esac
    work=$(mktemp -d -p "$(folder_for_models)")
    trap 'rm -rf "$work"' EXIT
    mkdir "$work/log"
    : >"$work/results"
    [[ -z ${OUT:-} ]] || : >"$OUT/log.txt"

    find_device
    if part "putting the parts together" "$setup_seconds" unpack && read_about &&
        part "the Python environment" "$setup_seconds" environment; then
        find_libraries
        # Whatever does not work here may do without what failed.
        part "MLX on the device" "$setup_seconds" computes || true
        golden_whole
        models
        golden_rest
    fi
    keep
    table
    ((${#failed[@]} == 0))
}

# Also on the way, since whoever started this may end it.
keep() { [[ -z ${OUT:-} ]] || table >"$OUT/table.txt"; }

# ------------------------------------------------------------ parts with a time limit

# Functions that run as parts say themselves where they end: `set -e` does not hold in them.
left() { echo $((in_all - at_the_end - SECONDS)); }

# Runs a function of this script in a process of its own, at most so long. What it says goes to a log. If it fails it is
# named in the table.
part() { # name seconds function arguments...
    local name=$1 seconds=$2 file state=0
    shift 2
    ((seconds <= $(left))) || seconds=$(left)
    file=$(log_of "$name")
    if ((seconds <= 0)); then
        failed+=("$name: no time was left")
        say "$name: no time is left"
        return 1
    fi
    say "$name"
    "$@" >"$file" 2>&1 &
    wait_for $! "$seconds" || state=$?
    [[ -z ${OUT:-} ]] || { printf '\n== %s, exit status %s\n' "$name" "$state" && cat "$file"; } >>"$OUT/log.txt"
    ((state != 0)) || return 0
    if ((state == 124)); then
        failed+=("$name: not done after $seconds s")
    else
        failed+=("$name: $(reason "$file") (exit status $state)")
    fi
    say "${failed[-1]}"
    return 1
}

# A part that may run out of time: then it is named, but has not failed.
optional() { # the arguments of part
    ! part "$@" || return 0
    if [[ ${failed[-1]} == *": not done after "* || ${failed[-1]} == *": no time was left" ]]; then
        undone+=("${failed[-1]}")
        unset 'failed[-1]'
    fi
    return 1
}

log_of() { printf '%s/log/%s' "$work" "${1//[^a-zA-Z0-9]/-}"; }

# The exit status of a child in its own process group, or 124 if that had to be killed.
wait_for() { # pid seconds
    local pid=$1 end=$((SECONDS + $2))
    while kill -0 "$pid" 2>/dev/null; do
        if ((SECONDS >= end)); then
            kill -KILL -- "-$pid" 2>/dev/null || true
            wait "$pid" 2>/dev/null || true
            return 124
        fi
        sleep 0.2
    done
    wait "$pid"
}

# The last line that says something, cut to a line of the table.
reason() { # log
    local line
    line=$(grep -E '[Ee]rror|failed|not found' "$1" | grep -v '^test ' | tail -1 || true)
    [[ -n $line ]] || line=$(grep . "$1" | tail -1 || true)
    printf '%.160s' "${line:-it said nothing}"
}

# ------------------------------------------------------------ the machine

folder_for_models() {
    local free
    if [[ -z ${TMPDIR:-} && -w /dev/shm ]]; then
        free=$(df -Pk /dev/shm | awk 'NR == 2 { print int($4 / 1048576) }')
        if ((free >= memory_gib)); then
            echo /dev/shm
            return
        fi
    fi
    echo "${TMPDIR:-/tmp}"
}

find_device() {
    PATH=$PATH:/usr/local/nvidia/bin:/usr/local/cuda/bin
    device=$(nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader 2>/dev/null | head -1 || true)
    kernels_of=gpu
    if [[ $device =~ \ ([0-9]+)\ MiB ]]; then card_mib=${BASH_REMATCH[1]}; fi
    if [[ -z $device ]]; then
        kernels_of=cpu small=1
        device=$(sed -n 's/^model name[^:]*: *//p' /proc/cpuinfo | head -1)
        device="${device:-$(uname -m)}, $(nproc) cores, no accelerator"
    fi
    say "$device"
}

unpack() {
    cd "$carried" && sha256sum --check --quiet SHA256SUMS && cat part-* | tar -xf - -C "$work" &&
        gzip -d "$work"/programs/*.gz && chmod +x "$work"/programs/*
}

read_about() {
    local key value
    while IFS='=' read -r key value; do packed[$key]=$value; done <"$work/about"
}

# An environment that sees what is installed beside the Python that makes it, also where that is an environment itself.
environment() {
    local python=${PYTHON:-python3} version places other
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])') || return
    if [[ $version != "${packed[python]}" ]]; then
        echo "error: the wheels are for Python ${packed[python]}, $python is $version: set PYTHON, or pack with --python $version"
        return 1
    fi
    if [[ ${packed[variant]} != cpu && $kernels_of == cpu ]]; then
        echo "error: the wheel is for ${packed[variant]}, and nvidia-smi finds no card: pack for cpu"
        return 1
    fi
    "$python" -m venv --without-pip "$work/env" || return
    places=$("$work/env/bin/python" -c 'import site; print(site.getsitepackages()[0])') || return
    "$python" -c 'import site; print("\n".join(site.getsitepackages()))' >"$places/beside.pth" || return
    # NVIDIA's libraries lie where those of MLX look for them.
    while read -r other; do
        [[ ! -d $other/nvidia || -e $places/nvidia ]] || ln -s "$other/nvidia" "$places/nvidia"
    done <"$places/beside.pth"
    local pip=("$python" -m pip --python "$work/env/bin/python" --disable-pip-version-check install --quiet
        --no-index --no-compile --no-cache-dir --root-user-action ignore)
    "${pip[@]}" --no-deps "$work"/wheels/mlx-*.whl "$work"/wheels/mlx_c*.whl &&
        "${pip[@]}" --find-links "$work/wheels" mlx-lm numpy tokenizers && echo "$places" >"$work/places"
}

# Where the loader finds libmlx.so and what that needs, and MLX the headers that it compiles kernels with.
find_libraries() {
    local places folder libraries
    places=$(<"$work/places")
    libraries=$places/mlx/lib
    if [[ $kernels_of == gpu ]]; then
        for folder in "$places"/nvidia/*/lib /usr/local/cuda/lib64 /usr/local/nvidia/lib64; do
            [[ ! -d $folder ]] || libraries+=:$folder
        done
        for folder in "$places"/nvidia/cu* "$places"/nvidia/cuda_runtime /usr/local/cuda; do
            [[ -n ${CUDA_HOME:-} || ! -f $folder/include/cuda_fp16.h ]] || export CUDA_HOME=$folder
        done
    fi
    export LD_LIBRARY_PATH=$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
    # The tests look for checkpoints beside their manifest.
    export CARGO_MANIFEST_DIR=$root/engine/mlx
}

# A product on MLX's default device, which has to be the card if there is one.
computes() {
    local missing
    missing=$(ldd "$(<"$work/places")/mlx/lib/libmlx.so" | awk '/not found/ { printf " %s", $1 }')
    if [[ -n $missing ]]; then
        echo "error: libmlx.so does not find$missing"
        return 1
    fi
    "$work/env/bin/python" - "$kernels_of" >"$work/mlx" <<'PYTHON'
import sys
from importlib.metadata import version

import mlx.core as mx

device = str(mx.default_device())
a = mx.ones((256, 256), mx.bfloat16)
assert (a @ a)[0, 0].item() == 256, "a product is wrong"
print(f"MLX {version('mlx')} on {device}, mlx-lm {version('mlx-lm')}")
assert f"({sys.argv[1]}," in device, f"the device is {device}, not {sys.argv[1]}"
PYTHON
}

# ------------------------------------------------------------ golden checkpoints

# One thread, since a card's memory and streams are the process's.
golden() { "$work/programs/golden" --test-threads 1 --nocapture "$@"; }

golden_whole() {
    part "golden checkpoints" "$golden_seconds" golden --exact whole || true
    grep -hEo '[0-9]+ of [0-9]+ checkpoints failed.*' "$(log_of "golden checkpoints")" |
        sed 's/: $//' >"$work/golden" || true
    [[ -s $work/golden ]] || echo "not all were computed" >"$work/golden"
}

# The cheap ones first. Cuts in three places and groups of ranks are left to `make test`: they say nothing of a device.
golden_rest() {
    optional "golden checkpoints in company" "$(left)" golden --exact memory_is_what_geometry_says \
        asking_for_logprobs_changes_no_token in_company the_contract_of_a_stage || true
    optional "golden checkpoints in chunks" "$(left)" golden --exact prompts_in_chunks || true
    optional "golden checkpoints cut in two" "$(left)" golden --exact cut_in_two_anywhere || true
}

# ------------------------------------------------------------ beside mlx-lm

models() {
    if [[ -n $small ]]; then
        # MLX's own kernels for CPUs take seconds for some hundred tokens even so.
        local shape=(--hidden 256 --intermediate 512 --layers 2 --heads 4 --kv-heads 2 --vocab 1024)
        prompt=128 decode=32
        model 1 "1M bf16" "${shape[@]}" --dtype bfloat16
        model 0 "1M 4-bit" "${shape[@]}" --dtype bfloat16 --bits 4
        return
    fi
    # The shapes of Llama 3.2 1B and of Llama 3.1 8B, made in f32 for a moment. MLX may take more than the card has, from
    # the machine's memory, which is slow at best.
    local one=(--hidden 2048 --intermediate 8192 --layers 16 --heads 32 --kv-heads 8 --vocab 128256 --tied)
    local eight=(--hidden 4096 --intermediate 14336 --layers 32 --heads 32 --kv-heads 8 --vocab 128256)
    model 3 "1B bf16" "${one[@]}" --dtype bfloat16
    model 2 "1B 4-bit" "${one[@]}" --dtype bfloat16 --bits 4
    if ((card_mib < eight_mib)); then
        undone+=("8B: the card has $card_mib MiB, and $eight_mib are needed to make it")
        return
    fi
    model 1 "8B 4-bit" "${eight[@]}" --dtype bfloat16 --bits 4
    model 0 "8B bf16" "${eight[@]}" --dtype bfloat16
}

# Makes a model and measures both sides by turns, in its share of what is left for it and for those that come after.
model() { # how-many-after name arguments-of-make_model.py...
    local after=$1 name=$2 folder="$work/model" end turn side sides=(planaria mlx-lm) able
    shift 2
    # The other tests of golden checkpoints have half the share of a model.
    end=$((SECONDS + $(left) * 2 / (2 * after + 3)))
    if part "$name: making it" $((end - SECONDS)) \
        "$work/env/bin/python" "$root/tests/bench/make_model.py" "$folder" "$@"; then
        # With a tokenizer the bench measures answers in a form, too.
        rm -f "$folder"/tokenizer*
        for ((turn = 1; turn <= turns; turn++)); do
            able=()
            for side in "${sides[@]}"; do
                ! measure "$name" "$side" "$turn" "$end" "$folder" || able+=("$side")
            done
            # A side that fails leaves the other to itself.
            sides=("${able[@]}")
        done
    fi
    rm -rf "$folder"
    keep
}

# One side's turn. Only the first one has to be done in time.
measure() { # model side turn end folder
    local title="$1: $2, turn $3" run=optional command
    (($3 > 1)) || run=part
    case $2 in
        planaria) command=("$work/programs/stage" "$5" "$prompt" "$decode" "$repetitions") ;;
        mlx-lm) command=("$work/env/bin/python" "$root/tests/bench/mlx_lm_bench.py" "$5"
            --prompt "$prompt" --decode "$decode" --repeat "$repetitions") ;;
    esac
    if "$run" "$title" $(($4 - SECONDS)) "${command[@]}"; then
        printf '%s\t%s\t%s\t%s\n' "$1" "$2" "$3" "$(grep -h '^{' "$(log_of "$title")" | tail -1)" >>"$work/results"
        return
    fi
    return 1
}

# ------------------------------------------------------------ the table

table() {
    echo "$device"
    if [[ -s $work/mlx ]]; then
        printf '%s; wheels for %s, programs of commit %s\n' "$(head -1 "$work/mlx")" "${packed[variant]}" "${packed[commit]}"
    fi
    [[ ! -f $work/golden ]] || printf 'Golden checkpoints: %s\n' "$(<"$work/golden")"
    echo
    "${PYTHON:-python3}" "$here/table.py" "$work/results" "$prompt" "$decode" || true
    echo
    local what
    for what in "${failed[@]}"; do printf 'FAILED    %s\n' "$what"; done
    for what in "${undone[@]}"; do printf 'NOT DONE  %s\n' "$what"; done
    printf 'All took %d s; parts that failed: %d.\n' "$SECONDS" "${#failed[@]}"
}

# Children get a process group each, so that one that is late can be ended with its own.
set -m
main "$@"
