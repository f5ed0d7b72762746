#!/usr/bin/env python3
"""Runs the functions test_* of tests/e2e/test_*.py; arguments choose by part of a name."""
import importlib
import os
import sys
import time
import traceback

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
from common import Skip  # noqa: E402


def main():
    passed = failed = skipped = 0
    for file in sorted(os.listdir(HERE)):
        if not (file.startswith("test_") and file.endswith(".py")):
            continue
        module = importlib.import_module(file[:-3])
        for name, test in list(vars(module).items()):
            if not name.startswith("test_") or not callable(test):
                continue
            if len(sys.argv) > 1 and not any(part in f"{file}:{name}" for part in sys.argv[1:]):
                continue
            start = time.time()
            try:
                told = test()
                passed += 1
                print(f"  ok {file[:-3]}.{name} ({time.time() - start:.1f} s)"
                      f"{': ' + told if told else ''}", flush=True)
            except Skip as why:
                skipped += 1
                print(f"  skipped {file[:-3]}.{name}: {why}", flush=True)
            except Exception as error:  # noqa: BLE001
                failed += 1
                trace = "" if isinstance(error, AssertionError) else traceback.format_exc()
                print(f"  FAILED {file[:-3]}.{name}: {error}\n{trace}", flush=True)
    print(f"{passed} passed, {failed} failed" + (f", {skipped} skipped" if skipped else ""))
    sys.exit(1 if failed else 0)


main()
