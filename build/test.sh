#!/bin/sh
# Builds everything and runs every test; the last line is `N passed, N failed[, N skipped]`.
# Usage: sh build/test.sh [SUITE...]     suites: unit cases e2e simt asan; all of them by default
set -eu
cd "$(dirname "$0")/.."
sh build/setup.sh
cmake --preset release >/dev/null
cmake --build --preset tests
exec python3 tests/run.py "$@"
