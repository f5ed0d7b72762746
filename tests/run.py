#!/usr/bin/env python3
"""Runs the suites and adds up what they counted.

unit   C unit tests (cmocka), built with the release preset
cases  dropped-in compiler cases: model text, command line, expected output
e2e    compiled models: golden tensors, training, kill and resume, sampling, bad input
simt   CUDA kernels on the CPU emulator and, where NVRTC is found, compiled and inspected
asan   the unit tests and the cases (with PVDM_SLOW=1 all programs of simt too) once more under
       AddressSanitizer and UBSan
"""
import concurrent.futures
import os
import re
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
COUNTS = re.compile(r"^(\d+) passed, (\d+) failed(?:, (\d+) skipped)?$", re.M)


def unit(preset):
    """Runs the cmocka programs, two at once; counts their tests."""
    folder = os.path.join(ROOT, "out", preset, "tests")
    programs = sorted(name for name in os.listdir(folder)
                      if name.startswith("test_") and os.access(os.path.join(folder, name), os.X_OK)
                      and os.path.isfile(os.path.join(folder, name)))

    def start(name):
        begin = time.time()
        done = subprocess.run([os.path.join(folder, name)], cwd=ROOT, text=True, errors="replace",
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        return done, time.time() - begin

    passed = failed = skipped = 0
    pool = concurrent.futures.ThreadPoolExecutor(2)
    for name, (done, seconds) in zip(programs, pool.map(start, programs)):
        ok = len(re.findall(r"^\[       OK \]", done.stdout, re.M))
        skip = len(re.findall(r"^\[  SKIPPED \] (?!\d+ test)", done.stdout, re.M))
        bad = len(set(re.findall(r"^\[  FAILED  \] (\w+)", done.stdout, re.M)))
        if done.returncode != 0 and bad == 0:
            bad = 1                                  # it crashed
        if bad:
            print(done.stdout[-8000:])
        if ok + skip + bad == 0:
            print(f"{name}: ran no test")
            bad = 1
        print(f"  {preset} {name}: {ok} passed, {bad} failed, {skip} skipped "
              f"({seconds:.1f} s)", flush=True)
        passed, failed, skipped = passed + ok, failed + bad, skipped + skip
    return passed, failed, skipped


def script(*command):
    """Runs a script that ends with `N passed, N failed[, N skipped]`."""
    done = subprocess.run([sys.executable, *command], cwd=ROOT, text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, errors="replace")
    counts = COUNTS.findall(done.stdout)
    body = COUNTS.sub("", done.stdout).strip()
    if body:
        print(body)
    if not counts:
        print(f"{command[0]}: ended without a count, status {done.returncode}")
        return 0, 1, 0
    passed, failed, skipped = (int(n or 0) for n in counts[-1])
    if done.returncode != 0 and failed == 0:
        failed = 1
    print(f"  {' '.join(os.path.relpath(c, ROOT) for c in command[:2])}: {passed} passed, "
          f"{failed} failed, {skipped} skipped", flush=True)
    return passed, failed, skipped


SLOW = os.environ.get("PVDM_SLOW") == "1"


def build_asan():
    """Whether programs of simt are there too: with PVDM_SLOW=1, if there is a C++ compiler."""
    build = ["cmake", "--build", "--preset", "asan"]
    quiet = {"cwd": ROOT, "stdout": subprocess.DEVNULL}
    subprocess.run(["cmake", "--preset", "asan"], check=True, **quiet)
    subprocess.run(build, check=True, **quiet)
    known = subprocess.run([*build, "--target", "help"], cwd=ROOT, text=True,
                           stdout=subprocess.PIPE).stdout
    if not SLOW or "simt_tests" not in known:
        return False
    subprocess.run([*build, "--target", "simt_tests"], check=True, **quiet)
    return True


def run_suite(name):
    release = os.path.join(ROOT, "out", "release", "pvdmc")
    cases = os.path.join(ROOT, "tests", "run_cases.py")
    if name == "unit":
        return unit("release")
    if name == "cases":
        return script(cases, release)
    if name == "e2e":
        return script(os.path.join(ROOT, "tests", "e2e", "run.py"))
    if name == "simt":
        return script(os.path.join(ROOT, "tests", "simt", "run.py"),
                      os.path.join(ROOT, "out", "release"))
    if name == "asan":
        emulated = build_asan()
        counts = [unit("asan"), script(cases, os.path.join(ROOT, "out", "asan", "pvdmc"))]
        if emulated:
            counts.append(script(os.path.join(ROOT, "tests", "simt", "run.py"),
                                 os.path.join(ROOT, "out", "asan"), "test_"))
        return tuple(map(sum, zip(*counts)))
    sys.exit(f"run.py: there is no suite '{name}'; suites: unit cases e2e simt asan")


def main():
    os.environ.setdefault("ASAN_OPTIONS", "detect_leaks=0:allocator_may_return_null=1")
    os.environ.setdefault("UBSAN_OPTIONS", "halt_on_error=1:print_stacktrace=1")
    total = [0, 0, 0]
    for name in sys.argv[1:] or ["unit", "cases", "e2e", "simt", "asan"]:
        start = time.time()
        print(f"== {name}", flush=True)
        for i, count in enumerate(run_suite(name)):
            total[i] += count
        print(f"== {name}: {time.time() - start:.0f} s", flush=True)
    passed, failed, skipped = total
    print(f"{passed} passed, {failed} failed" + (f", {skipped} skipped" if skipped else ""))
    sys.exit(1 if failed or not passed else 0)


main()
