#!/usr/bin/env bash
# Gathers in tests/device/carried what run.sh needs on a machine without a network. See README.md.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=${here%/tests/device}
readonly here root carried=$here/carried

# The largest carry of one call, and what is left of it for names and sums.
readonly carry_mib=64 margin_mib=2
# Of these only the C library decides what runs; 2.39 is Ubuntu's of 2024.
readonly newest_glibc=39

say() { printf '[pack] %s\n' "$*" >&2; }
fail() {
    printf '[pack] error: %s\n' "$*" >&2
    exit 1
}

usage() {
    cat <<'TEXT'
Usage: tests/device/pack.sh [--lean] [--python 3.12] [--part-mib N] [cpu|cuda12|cuda13]

Builds the programs, downloads the wheels, and writes carried/part-* and carried/SHA256SUMS.

  --lean      of Python's packages MLX and mlx-lm alone: the machine has numpy, transformers and the others
  --python    the version of Python on that machine; the default is this machine's
  --part-mib  the size of a part; by default what the working tree leaves of 64 MiB
TEXT
}

main() {
    local lean='' variant=cpu python='' part_mib=''
    while (($#)); do
        case $1 in
            --lean) lean=1 ;;
            --python) python=${2:?} && shift ;;
            --part-mib) part_mib=${2:?} && shift ;;
            cpu | cuda12 | cuda13) variant=$1 ;;
            -h | --help) usage && return ;;
            *) fail "unknown argument '$1' (see --help)" ;;
        esac
        shift
    done
    [[ $(uname -s) == Linux ]] || fail "MLX's wheels for such machines are for Linux"
    [[ -n $python ]] || python=$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    cd "$root"
    local mlx mlx_lm gathered
    mlx=$(sed -n 's/^readonly MLX_VERSION=\([0-9.]*\).*/\1/p' engine/mlx/setup.sh)
    mlx_lm=$(sed -n 's/.*python_env .* mlx-lm==\([0-9.]*\).*/\1/p' .ci/setup.sh)
    [[ -n $mlx && -n $mlx_lm ]] || fail "engine/mlx/setup.sh or .ci/setup.sh names no version"

    gathered=$(mktemp -d)
    # shellcheck disable=SC2064 # the value of now: the variable is this function's
    trap "rm -rf '$gathered'" EXIT
    mkdir "$gathered"/{wheels,programs}
    wheels "$gathered/wheels" "$variant" "$python" "$mlx" "$mlx_lm" "$lean"
    programs "$gathered/programs"
    check_symbols "$gathered" "$variant"
    cat >"$gathered/about" <<TEXT
variant=$variant
python=$python
mlx=$mlx
mlx_lm=$mlx_lm
commit=$(git describe --always --dirty --abbrev=12 2>/dev/null || echo unknown)
TEXT
    parts "$gathered" "${part_mib:-$(left_mib)}"
}

package_of() { # variant
    case $1 in
        cpu) echo mlx-cpu ;;
        cuda12) echo mlx-cuda-12 ;;
        cuda13) echo mlx-cuda-13 ;;
    esac
}

# NVIDIA's libraries, which the CUDA wheel asks for, are left out: they are 1.5 GB in wheels.
wheels() { # folder variant python mlx mlx-lm lean
    local folder=$1 python=$3 minor machine options=()
    machine=$(uname -m)
    options=(--dest "$folder" --only-binary :all: --implementation cp --python-version "$python")
    for ((minor = newest_glibc; minor >= 5; minor--)); do
        options+=(--platform "manylinux_2_${minor}_$machine")
    done
    options+=(--platform "manylinux2014_$machine" --platform "manylinux1_$machine" --platform "linux_$machine")
    say "downloading $(package_of "$2") and mlx $4, mlx-lm $5, for Python $python"
    download "${options[@]}" --no-deps "mlx==$4" "$(package_of "$2")==$4"
    if [[ -n $6 ]]; then
        download "${options[@]}" --no-deps "mlx-lm==$5"
    else
        download "${options[@]}" "mlx-lm==$5"
    fi
}

download() {
    python3 -m pip download --quiet --disable-pip-version-check "$@" >&2 || fail "pip could not download: ${*: -2}"
}

# The golden tests and the bench of a stage, with no path of this machine in their run path.
programs() { # folder
    command -v patchelf >/dev/null || fail "patchelf is missing: run .ci/setup.sh install"
    say "building the golden tests and the bench of a stage"
    local golden stage
    golden=$(built golden test --release --test golden)
    stage=$(built stage bench --bench stage)
    strip -o "$1/golden" "$golden"
    strip -o "$1/stage" "$stage"
    patchelf --remove-rpath "$1/golden" "$1/stage"
}

built() { # name cargo's-arguments...
    local name=$1 found
    shift
    found=$(cargo "$@" --no-run --locked --workspace --message-format json |
        sed -n "s/.*\"executable\":\"\([^\"]*\/$name-[0-9a-f]*\)\".*/\1/p" | tail -1)
    [[ -x $found ]] || fail "cargo has built no $name"
    printf '%s\n' "$found"
}

# The programs are linked with the CPU's libmlx.so and run with either. Both have the same headers; that nothing which
# the programs call is missing in the other is looked up here.
check_symbols() { # gathered variant
    local scratch=$1/unpacked program missing
    python3 -m zipfile -e "$1"/wheels/mlx_c*.whl "$scratch"
    nm -D --defined-only "$scratch/mlx/lib/libmlx.so" | awk '{ print $3 }' | sed 's/@.*//' | sort -u >"$scratch/has"
    for program in "$1"/programs/*; do
        missing=$(nm -D --undefined-only "$program" | awk '{ print $2 }' | grep -E '^_Z.*3mlx4core' | sed 's/@.*//' |
            sort -u | comm -23 - "$scratch/has")
        [[ -z $missing ]] || fail "libmlx.so of $2 lacks what ${program##*/} calls: $missing"
    done
    rm -rf "$scratch"
}

# What a call can carry beside the working tree.
left_mib() {
    local tree
    tree=$(git ls-files -z --cached --others --exclude-standard | xargs -0 du -cb | awk '$2 == "total" { s += $1 } END { print s }')
    echo $((carry_mib - margin_mib - (tree + 1048575) / 1048576))
}

# One archive in parts of about the same size.
parts() { # gathered part-mib
    local bytes count limit=$(($2 * 1048576))
    ((limit > 0)) || fail "the working tree leaves no room for a part"
    rm -rf "$carried"
    mkdir "$carried"
    # Wheels are compressed already, programs are not.
    gzip -9 "$1"/programs/*
    tar -C "$1" --owner 0 --group 0 -cf "$1.tar" about wheels programs
    say "what is packed, by size:"
    tar -tvf "$1.tar" | awk '{ printf "%10d %s\n", $3, $6 }' | sort -rn >&2
    bytes=$(stat -c %s "$1.tar")
    count=$(((bytes + limit - 1) / limit))
    split -n "$count" -d "$1.tar" "$carried/part-"
    rm "$1.tar"
    (cd "$carried" && sha256sum part-* >SHA256SUMS)
    say "$count parts of at most $2 MiB, $((bytes / 1048576)) MiB in all:"
    (cd "$carried" && stat -c '%10s %n' part-*) >&2
}

main "$@"
