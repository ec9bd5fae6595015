#!/bin/sh
# Stands in for rustc when the fuzzer is built, for the members of the workspace only: they get the
# counters by which libFuzzer sees what an input reaches, their dependencies are those of every other
# build and are not compiled again. These are LLVM's flags, which stable Rust hands on. Overflow is
# an error, as in every build for tests; the optimization is for speed.
exec "$@" \
    -C passes=sancov-module \
    -C llvm-args=-sanitizer-coverage-level=4 \
    -C llvm-args=-sanitizer-coverage-inline-8bit-counters \
    -C llvm-args=-sanitizer-coverage-pc-table \
    -C llvm-args=-sanitizer-coverage-trace-compares \
    -C opt-level=1 -C debug-assertions=on -C overflow-checks=on
