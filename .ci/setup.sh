#!/usr/bin/env bash
# Installs what Planaria needs, each thing only if it is missing.
# Usage: .ci/setup.sh build|install|tests|agents|deny|bench|jaeger|arm64
set -euo pipefail
cd "$(dirname "$0")/.."

cache=${PLANARIA_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/planaria}

say() { printf '[setup] %s\n' "$*" >&2; }
fail() { printf '[setup] error: %s\n' "$*" >&2; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }

# Runs something as root, or says what to run.
as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    else
        have sudo || fail "please run as root: $*"
        sudo "$@"
    fi
}

apt_update() { as_root apt-get update -qq; }

# Installs Debian packages, or says how.
apt_install() {
    have apt-get || fail "please install: $*"
    say "installing $*"
    apt_update
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >&2
}

rust() {
    [ -d "$HOME/.cargo/bin" ] && PATH="$HOME/.cargo/bin:$PATH"
    if ! have cargo; then
        if have apt-get && apt-cache show rustup >/dev/null 2>&1; then
            apt_install rustup
        else
            fail "Rust is missing: install it as https://rustup.rs says, then run make again"
        fi
    fi
    # With rustup this fetches the toolchain of rust-toolchain.toml if it is not here.
    local want have_version
    want=$(sed -n 's/^channel = "\(.*\)"/\1/p' rust-toolchain.toml)
    have_version=$(cargo --version | cut -d' ' -f2) || fail "cargo does not run"
    if [ "$(printf '%s\n%s\n' "$want" "$have_version" | sort -V | head -1)" != "$want" ]; then
        fail "Rust $want or newer is needed and this is $have_version: install rustup, which picks it by itself"
    fi
}

build() {
    have cc && have c++ || { [ "$(uname -s)" = Darwin ] && fail "run: xcode-select --install"; apt_install build-essential; }
    rust
    cargo fetch --locked --quiet
    ./engine/mlx/setup.sh
}

# What an installed planaria is made to find its libraries with. A Mac's needs none besides the system's.
install_tools() {
    [ "$(uname -s)" != Linux ] || have patchelf || apt_install patchelf
}

# A Python environment with these packages; made anew when the list changes.
python_env() {
    local dir=$1
    shift
    local stamp="$dir/planaria-packages"
    if [ -x "$dir/bin/python" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$*" ]; then
        return
    fi
    have python3 || apt_install python3
    python3 -c 'import ensurepip, venv' 2>/dev/null || apt_install python3-venv
    say "making a Python environment with $*"
    rm -rf "$dir/bin" "$dir/lib"
    python3 -m venv "$dir"
    "$dir/bin/pip" install --quiet "$@" || fail "pip could not install $*"
    printf '%s' "$*" >"$stamp"
}

# cargo-deny, compiled once: what package registries have ready-made is too old to read deny.toml.
cargo_deny() {
    local dir="$cache/cargo-deny" wanted=0.20.2
    [ "$("$dir/bin/cargo-deny" --version 2>/dev/null)" != "cargo-deny $wanted" ] || return 0
    rust
    say "building cargo-deny $wanted into $dir (once; some minutes)"
    cargo install --quiet --locked --debug --root "$dir" "cargo-deny@$wanted" >&2 \
        || fail "cargo-deny could not be built"
}

# The clients that the tests talk to the API with.
clients() {
    python_env "$cache/clients" openai[realtime]==3.54.0 langchain-openai==1.7.4 llm==0.36 anthropic==2.14.0 ollama==0.6.3
    have node && have npm || apt_install nodejs npm
    local stamp="$cache/clients/planaria-node-packages" packages=(openai@7.57.0 playwright-core@1.65.1)
    if [ "$(cat "$stamp" 2>/dev/null)" != "${packages[*]}" ]; then
        say "installing ${packages[*]} for Node.js"
        npm install --silent --no-audit --no-fund --fetch-timeout 60000 --prefix "$cache/clients" "${packages[@]}" >&2 \
            || fail "npm could not install ${packages[*]}"
        printf '%s' "${packages[*]}" >"$stamp"
    fi
}

# Clients with a loop of their own, for `make clients`.
agents() {
    clients
    python_env "$cache/agents" litellm==1.110.2 pydantic-ai-slim[openai]==2.68.0 langchain==1.5.2 langchain-openai==1.7.4
    # It wants an older litellm.
    python_env "$cache/agents/aider" aider-chat==0.86.2
    local stamp="$cache/agents/planaria-node-packages"
    local packages=(ai@7.0.173 @ai-sdk/openai-compatible@3.0.92 zod@4.6.7 @openai/codex@0.171.0)
    if [ "$(cat "$stamp" 2>/dev/null)" != "${packages[*]}" ]; then
        say "installing ${packages[*]} for Node.js"
        npm install --silent --no-audit --no-fund --fetch-timeout 60000 --prefix "$cache/agents" "${packages[@]}" >&2 \
            || fail "npm could not install ${packages[*]}"
        printf '%s' "${packages[*]}" >"$stamp"
    fi
}

# A browser to look at the page with: the system's, by a name of ours.
browser() {
    local found chrome="/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"
    found=$(command -v chromium || command -v google-chrome || true)
    [ -n "$found" ] || [ ! -x "$chrome" ] || found=$chrome
    if [ -z "$found" ]; then
        [ "$(uname -s)" != Darwin ] || fail "please install Google Chrome"
        apt_install chromium
        found=$(command -v chromium) || fail "apt-get has installed no chromium"
    fi
    mkdir -p "$cache"
    printf '#!/bin/sh\nexec "%s" "$@"\n' "$found" >"$cache/chromium"
    chmod +x "$cache/chromium"
}

# Networks of several machines within one.
network() {
    [ "$(uname -s)" != Linux ] || have ip || apt_install iproute2
}

# What reads our unit for systemd.
systemd() {
    [ "$(uname -s)" != Linux ] || have systemd-analyze || apt_install systemd
}

# Prometheus and its checker, to read our metrics with. Debian's package would start a service, so it is
# unpacked and not installed.
prometheus() {
    local dir="$cache/prometheus" tool
    [ -x "$dir/promtool" ] && [ -x "$dir/prometheus" ] && return
    mkdir -p "$dir"
    if have promtool && have prometheus; then
        for tool in prometheus promtool; do ln -sf "$(command -v "$tool")" "$dir/$tool"; done
        return
    fi
    have apt-get || fail "please install: prometheus (with promtool)"
    say "unpacking Debian's prometheus into $dir"
    (
        cd "$dir"
        rm -rf unpacked prometheus_*.deb
        apt-get download -qq prometheus >&2 || { apt_update && apt-get download -qq prometheus >&2; } \
            || fail "apt-get could not download prometheus"
        dpkg-deb -x prometheus_*.deb unpacked
        rm prometheus_*.deb
    )
    for tool in prometheus promtool; do ln -sf "unpacked/usr/bin/$tool" "$dir/$tool"; done
}

# Jaeger, which shows traces: built from its Go module, whose web page is not in there. Succeeds without it where
# there is no Go, since a container does as well.
jaeger() {
    local dir="$cache/jaeger" wanted
    wanted=$(sed -n 's,.*jaegertracing/jaeger \(v[^ ]*\).*,\1,p' deploy/jaeger/go.mod)
    [ -x "$dir/jaeger" ] && [ "$(cat "$dir/version" 2>/dev/null)" = "$wanted" ] && return
    local needed
    needed=$(sed -n 's/^go //p' deploy/jaeger/go.mod)
    if ! have go || [ "$(printf '%s\n%s\n' "$needed" "$(go env GOVERSION | sed 's/^go//')" | sort -V | head -1)" != "$needed" ]; then
        say "there is no Go $needed or newer to build Jaeger with: traces are tested with a receiver of our own"
        return
    fi
    mkdir -p "$dir"
    say "building Jaeger $wanted into $dir (once; some minutes)"
    (cd deploy/jaeger && GOTOOLCHAIN=local GOFLAGS=-mod=readonly go build -trimpath -ldflags="-s -w" \
        -o "$dir/jaeger.new" github.com/jaegertracing/jaeger/cmd/jaeger) >&2 || fail "Jaeger could not be built"
    mv "$dir/jaeger.new" "$dir/jaeger"
    printf '%s' "$wanted" >"$dir/version"
}

openblas() {
    ls /usr/lib/*/openblas-pthread/libopenblas.so.0 2>/dev/null | grep -m1 .
}

# What to measure beside: mlx-lm, on a faster BLAS than its wheel brings, and llama.cpp.
bench() {
    python_env "$cache/bench" "mlx[cpu]==0.32.2" mlx-lm==0.32.2 numpy==2.4.6 tokenizers==0.23.3 gguf==0.19.0
    if [ "$(uname -s)" = Linux ]; then
        openblas >/dev/null || apt_install libopenblas0-pthread
        for bundled in "$cache"/bench/lib/python*/site-packages/mlx_cpu.libs/libblas-*.so.3*; do
            [ ! -e "$bundled" ] || ln -sf "$(openblas)" "$bundled"
        done
    fi
    llama_cpp "$cache/bench"
}

# llama.cpp for Python, built for this CPU; so it never comes from pip's cache, which may be another machine's.
llama_cpp() {
    local dir=$1 package=llama-cpp-python==0.3.36 flags=()
    # GCC before 12.4 and 13.3 drops all of llama.cpp's settings for AMX but the first eight bytes, since its
    # _tile_loadconfig says that it reads no more (bug 114098); the first product with 4-bit weights would crash.
    [ "$(uname -sm)" != "Linux x86_64" ] || flags=(-fno-dse -fno-tree-dse)
    local stamp="$dir/lib/planaria-llama-cpp" wanted="$package ${flags[*]-}"
    [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ] || return 0
    have cc && have c++ || { [ "$(uname -s)" = Darwin ] && fail "run: xcode-select --install"; apt_install build-essential; }
    say "building llama.cpp for this machine ($package; once, five to ten minutes)"
    CXXFLAGS="${CXXFLAGS-} ${flags[*]-}" CMAKE_ARGS="-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF" \
        "$dir/bin/pip" install --quiet --no-cache-dir --force-reinstall --no-deps "$package" diskcache==5.6.3 \
        || fail "llama.cpp could not be built"
    printf '%s' "$wanted" >"$stamp"
}

# What builds for arm64 on another machine, and runs that.
arm64() {
    rust
    local target=aarch64-unknown-linux-gnu
    if ! ls "$(rustc --print sysroot)/lib/rustlib/$target/lib/"libstd-*.rlib >/dev/null 2>&1; then
        have rustup || fail "Rust's library for $target is missing, and there is no rustup to fetch it"
        rustup target add "$target" || fail "rustup could not fetch Rust's library for $target"
    fi
    [ "$(uname -m)" != aarch64 ] || return 0
    have aarch64-linux-gnu-gcc && have qemu-aarch64 \
        || apt_install gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user
}

case "${1:-}" in
    build) build ;;
    install) install_tools ;;
    tests) install_tools; clients; browser; network; systemd; prometheus; jaeger ;;
    agents) agents ;;
    deny) cargo_deny ;;
    bench) bench ;;
    jaeger) jaeger ;;
    arm64) arm64 ;;
    *) fail "usage: setup.sh build|install|tests|agents|deny|bench|jaeger|arm64" ;;
esac
