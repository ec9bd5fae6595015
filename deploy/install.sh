#!/usr/bin/env bash
# Installs a planaria that was built on this machine, for every user of it.
# Usage: [PREFIX=/usr/local] [DESTDIR=FOLDER] deploy/install.sh BINARY
#
# On Linux a build finds MLX in the cache of who built it, which a service's user cannot enter. So the wheel of
# MLX goes along, laid out as it is: libmlx.so looks for its BLAS, and whatever else it loads, around itself.
set -euo pipefail
umask 022

say() { printf '[install] %s\n' "$*" >&2; }
fail() { printf '[install] error: %s\n' "$*" >&2; exit 1; }

main() {
    [ $# = 1 ] && [ -x "$1" ] || fail "usage: [PREFIX=/usr/local] [DESTDIR=FOLDER] deploy/install.sh BINARY"
    local root="${DESTDIR:-}${PREFIX:-/usr/local}" wheel=
    # Not local: the trap comes after this function.
    staged=$(mktemp -d)
    trap 'rm -rf "$staged"' EXIT
    cp "$1" "$staged/planaria"
    if [ "$(uname -s)" = Linux ]; then
        wheel=$(find_wheel "$1")
        command -v patchelf >/dev/null || fail "patchelf is missing: make install installs it"
        # shellcheck disable=SC2016 # the loader's variable, not the shell's
        patchelf --set-rpath '$ORIGIN/../lib/planaria/mlx/lib' "$staged/planaria"
    fi
    folder "$root/bin"
    # Before the program that needs it.
    [ -z "$wheel" ] || bring_wheel "$wheel" "$root/lib"
    # Renamed into its place: a node may be running from there.
    as_owner "$root/bin" install -m 755 "$staged/planaria" "$root/bin/.planaria.new"
    as_owner "$root/bin" mv -f "$root/bin/.planaria.new" "$root/bin/planaria"
    [ -z "$wheel" ] || check "$root/bin/planaria" "$wheel"
    say "installed $root/bin/planaria"
}

# The folder by which a build finds MLX, see engine/mlx/setup.sh.
find_wheel() { # binary
    local path
    path=$(readelf -d "$1" | sed -n 's,^.*R[UN]*PATH.*\[\(/[^]:]*\)/mlx/lib[]:].*$,\1,p')
    [ -f "$path/mlx/lib/libmlx.so" ] || fail "$1 does not find MLX here: was it built on this machine, by make build?"
    printf '%s' "$path"
}

bring_wheel() { # wheel lib
    folder "$2"
    as_owner "$2" rm -rf "$2/.planaria.new" "$2/.planaria.old"
    as_owner "$2" mkdir -p "$2/.planaria.new"
    as_owner "$2" cp -RP "$1"/* "$2/.planaria.new/"
    as_owner "$2" chmod -R u=rwX,go=rX "$2/.planaria.new"
    # Written over in place, they would change under a node that runs.
    [ ! -e "$2/planaria" ] || as_owner "$2" mv "$2/planaria" "$2/.planaria.old"
    as_owner "$2" mv "$2/.planaria.new" "$2/planaria"
    as_owner "$2" rm -rf "$2/.planaria.old"
}

folder() { # path
    [ -d "$1" ] || as_owner "$1" install -d -m 755 "$1"
}

# Runs a command that writes to a path: by sudo where whoever calls may not.
as_owner() { # path command...
    local nearest=$1
    shift
    while [ ! -e "$nearest" ]; do nearest=$(dirname "$nearest"); done
    if [ -w "$nearest" ]; then
        "$@"
    else
        command -v sudo >/dev/null || fail "please run as root: $nearest cannot be written to"
        sudo "$@"
    fi
}

# Whether all that it loads is found, and nothing of it where only some may look.
check() { # binary wheel
    local loads
    # The driver's is where the driver is.
    loads=$(ldd "$1" | grep -v 'libcuda\.so\.1 ')
    case $loads in
        *'not found'* | *"$2/"*) fail "$1 would not start for everybody: $loads" ;;
    esac
}

main "$@"
