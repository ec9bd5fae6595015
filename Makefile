# Two commands matter: `make demo` and `make test`. Both install what is missing.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup setup-tests setup-bench build install demo jaeger test simulate many chaos soak compat ranks exchange kernels fuzz schemas responses clients bench device lint deny fmt clean

CACHE := $(or $(PLANARIA_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/planaria)
TARGET := $(or $(CARGO_TARGET_DIR),target)
PREFIX ?= /usr/local
DESTDIR ?=
QUESTION ?=
BENCH ?=
CHAOS ?= --rounds 10
CLIENTS ?=
SOAK ?= --minutes 60
OTHER_COMMIT ?= 3f70f97
FUZZ_SECONDS ?= 10
SEEDS ?= 10000
KILLS ?= 1000
SEED ?= 1
PATIENCE ?= 500
FUZZ_TARGETS ?=
SUITE ?=
PYTHON ?= python3
BUN ?= bun

help: ## Show this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Install what building needs (tools, MLX)
	@./.ci/setup.sh build

setup-tests: setup
	@./.ci/setup.sh tests

setup-bench: setup
	@./.ci/setup.sh bench

build: setup ## Build target/release/planaria
	cargo build --release --locked -p planaria-cli --bin planaria

install: build ## Install planaria for every user (PREFIX=/usr/local DESTDIR=)
	@./.ci/setup.sh install
	@PREFIX=$(PREFIX) DESTDIR=$(DESTDIR) deploy/install.sh $(TARGET)/release/planaria

demo: build ## Three nodes answer a question and call a tool, while nodes are killed (QUESTION="...")
	@cargo build --release --locked --quiet -p planaria-tests --no-default-features --bin demo
	@$(TARGET)/release/demo $(TARGET)/release/planaria $(if $(QUESTION),"$(QUESTION)")

jaeger: ## A real Jaeger on this machine, until Ctrl-C; `make demo` sends its traces there
	@./.ci/setup.sh jaeger
	@if [ -x $(CACHE)/jaeger/jaeger ]; then \
	  echo "Jaeger takes traces at http://127.0.0.1:4317; ask http://127.0.0.1:16686/api/traces?service=..."; \
	  exec $(CACHE)/jaeger/jaeger --config deploy/jaeger/config.yaml; \
	else exec docker compose -f deploy/jaeger/compose.yaml up; fi

test: setup-tests ## Run every test
	PLANARIA_TEST_PYTHON=$(CACHE)/clients/bin/python \
	PLANARIA_TEST_NODE_MODULES=$(CACHE)/clients/node_modules \
	PLANARIA_TEST_PROMETHEUS=$(CACHE)/prometheus \
	PLANARIA_TEST_JAEGER=$$(ls $(CACHE)/jaeger/jaeger 2>/dev/null) \
	PLANARIA_TEST_CHROMIUM=$(CACHE)/chromium \
	cargo test --locked --workspace --no-fail-fast

simulate: setup ## Clusters on virtual time: answers in SEEDS=10000 of them, an hour of membership in one of a hundred
	export PLANARIA_SIMULATED_SECONDS=3600 PLANARIA_SIMULATED_SEEDS=$(SEEDS) && \
	cargo test --release --locked -p planaria-simulation -p planaria-control --lib -- --nocapture

chaos: build ## Break real clusters in every way there is (CHAOS="--scenario kill-node --rounds 20 --seed 2")
	@cargo build --release --locked --quiet -p planaria-chaos --bin chaos
	@cargo build --release --locked --quiet -p planaria-tests --bin planaria-under-test
	@$(TARGET)/release/chaos run --planaria $(TARGET)/release/planaria-under-test $(CHAOS)

soak: build ## An hour of mixed use with a blow every minute (SOAK="--minutes 60 --requests 22000 --seed 1")
	@cargo build --release --locked --quiet -p planaria-chaos --bin chaos
	@$(TARGET)/release/chaos soak --planaria $(TARGET)/release/planaria $(SOAK)

compat: build ## Clusters of this build and of OTHER_COMMIT, or of PLANARIA_OTHER_BUILD=FILE
	@cargo build --release --locked --quiet -p planaria-chaos --bin chaos
	@other="$${PLANARIA_OTHER_BUILD:-$$(.ci/other_build.sh $(OTHER_COMMIT) $(CACHE)/builds)}" && \
	$(TARGET)/release/chaos mixed --planaria $(TARGET)/release/planaria --other "$$other"

clients: setup ## Agents and other clients that nobody here wrote, on three nodes (CLIENTS="litellm codex" for some)
	@./.ci/setup.sh agents
	@cargo build --locked --quiet --workspace --bin planaria-under-test --bin clients
	@$(TARGET)/debug/clients $(TARGET)/debug/planaria-under-test $(CACHE)/agents $(CACHE)/clients/bin/python $(CLIENTS)

many: setup ## As many models as can be wanted at once, each asked for through each node, through a kill and a restart
	cargo test --locked -p planaria-tests --test endurance -- --ignored --nocapture

kernels: setup ## The kernels' tests under AddressSanitizer, and for arm64 (in an emulator on other machines)
	RUSTC_BOOTSTRAP=1 RUSTFLAGS=-Zsanitizer=address \
	cargo test --release --locked -p planaria-kernels --target $$(rustc -vV | sed -n 's/^host: //p')
	@./.ci/setup.sh arm64
	CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=$$(command -v aarch64-linux-gnu-gcc || echo cc) \
	CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="$$(command -v qemu-aarch64 >/dev/null && echo qemu-aarch64 -L /usr/aarch64-linux-gnu)" \
	RUSTFLAGS= cargo test --release --locked -p planaria-kernels --target aarch64-unknown-linux-gnu

# With the features of the whole workspace, so that what `make test` has compiled is not compiled again.
fuzz: setup ## Try hostile bytes on every parser (FUZZ_SECONDS=10 for each, FUZZ_TARGETS="a b" for some)
	@RUSTC_WORKSPACE_WRAPPER=$(CURDIR)/tests/fuzz/instrumented_rustc.sh \
	cargo build --locked --quiet --workspace --bin planaria-fuzz
	@tests/fuzz/run.sh $(TARGET)/debug/planaria-fuzz $(TARGET)/fuzz $(FUZZ_SECONDS) $(FUZZ_TARGETS)

schemas: setup ## Random answers to the schemas of the JSON Schema Test Suite (SUITE=its folder tests, PYTHON=one with jsonschema)
	@cargo run --locked --quiet -p planaria-engine --example schemas -- "$(SUITE)" > $(TARGET)/schemas.jsonl
	@$(PYTHON) engine/examples/validate.py $(TARGET)/schemas.jsonl

responses: setup ## The Open Responses compliance suite (SUITE=a checkout of it after `bun install`, BUN=the program if it is not in PATH)
	@cargo build --locked --quiet --workspace --bin planaria-under-test --bin responses
	@$(TARGET)/debug/responses $(TARGET)/debug/planaria-under-test "$(SUITE)" "$(BUN)"

ranks: setup ## Kill a process of a group of ranks in the middle of an exchange, again and again (KILLS=1000 SEED=1 PATIENCE=500, in ms)
	@cargo build --release --locked --quiet -p planaria-tests --no-default-features --bin ranks
	@$(TARGET)/release/ranks kills $(KILLS) $(SEED) $(PATIENCE)

exchange: setup-bench ## Measure exchanges of 2 and 3 ranks beside MLX's ring
	@cargo build --release --locked --quiet -p planaria-tests --no-default-features --bin ranks
	@$(TARGET)/release/ranks measure $(CACHE)/bench/bin/python

bench: build setup-bench ## Measure one node beside llama.cpp and mlx-lm, a hop, a loss (BENCH="single 350M" for less)
	@cargo build --release --locked --quiet -p planaria-tests --no-default-features --bin bench
	@stage=$$(cargo bench --locked --no-run -p planaria-mlx --bench stage --message-format json 2>/dev/null \
	  | sed -n 's/.*"executable":"\([^"]*stage-[^"]*\)".*/\1/p' | tail -1); \
	$(TARGET)/release/bench $(TARGET)/release/planaria "$$stage" $(CACHE)/bench/bin/python $(CACHE)/bench/models $(BENCH)
	@$(if $(BENCH),,cargo bench --locked --quiet -p planaria-transport --bench hop)

device: setup ## The check for a machine with a card and no network, packed and run for this CPU (tests/device/README.md)
	@./.ci/setup.sh install
	@tests/device/pack.sh cpu
	@tests/device/run.sh --small

lint: setup ## Formatting, clippy and docs, warnings as errors
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps --quiet

deny: setup ## Check what comes with dependencies: licences, sources, and what is banned
	@./.ci/setup.sh deny
	$(CACHE)/cargo-deny/bin/cargo-deny --locked check --hide-inclusion-graph bans licenses sources

fmt: ## Format the code
	cargo fmt --all

clean: ## Remove what was built here (the cache stays; see engine/mlx/README.md)
	cargo clean
