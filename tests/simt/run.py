#!/usr/bin/env python3
"""Runs the programs of tests/simt of a build: run.py out/release [WORD...]

Every test_* program, kernel_figures and models.py; WORDs choose by name.
Two run at a time. Ends with `N passed, N failed, N skipped`.
"""
import concurrent.futures
import os
import re
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
COUNTS = re.compile(r"^(\d+) passed, (\d+) failed(?:, (\d+) skipped)?$", re.M)
LIMIT = 900  # seconds a program: a hang, not a slow machine


def run(program):
    """Returns what a program printed and its counts."""
    name = os.path.basename(program)
    command = [program]
    if name == "models.py":
        command = [sys.executable, program, os.path.join(os.path.abspath(sys.argv[1]), "pvdmc")]
    if name == "kernel_figures":
        command.append(ROOT)
    start = time.time()
    try:
        done = subprocess.run(command, cwd=ROOT, text=True, errors="replace", timeout=LIMIT,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        text, status = done.stdout, done.returncode
    except subprocess.TimeoutExpired:
        text, status = f"still running after {LIMIT} s\n", 1
    counts = COUNTS.findall(text)
    passed, failed, skipped = (int(n or 0) for n in counts[-1]) if counts else (0, 1, 0)
    if status != 0 and failed == 0:
        failed = 1
    line = f"  simt {name}: {passed} passed, {failed} failed ({time.time() - start:.1f} s)"
    if failed or skipped or name in ("kernel_figures", "models.py"):
        line = COUNTS.sub("", text).strip()[-6000:] + "\n" + line
    return line, (passed, failed, skipped)


def main():
    wheel = os.path.join(ROOT, "out", "nvrtc", "nvidia", "cu13", "lib")
    if "PVDM_NVRTC" not in os.environ and os.path.isdir(wheel):
        os.environ["PVDM_NVRTC"] = wheel
    folder = os.path.join(os.path.abspath(sys.argv[1]), "tests", "simt")
    names = [name for name in sorted(os.listdir(folder))
             if (name.startswith("test_") or name == "kernel_figures")
             and os.path.isfile(os.path.join(folder, name))
             and os.access(os.path.join(folder, name), os.X_OK)
             and (len(sys.argv) < 3 or any(word in name for word in sys.argv[2:]))]
    programs = [os.path.join(folder, name) for name in names]
    if len(sys.argv) < 3 or any(word in "models.py" for word in sys.argv[2:]):
        programs.insert(0, os.path.join(ROOT, "tests", "simt", "models.py"))
    total = [0, 0, 0]
    if len(sys.argv) < 3 and not any(name.startswith("test_") for name in names):
        print("the emulator's tests were not built: is there a C++ compiler?")
        total[2] += 1
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for line, counts in pool.map(run, programs):
            print(line, flush=True)
            total = [a + b for a, b in zip(total, counts)]
    print("{} passed, {} failed, {} skipped".format(*total))
    sys.exit(1 if total[1] else 0)


main()
