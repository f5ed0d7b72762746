#!/usr/bin/env python3
"""Static figures of every CUDA kernel of the models: models.py PVDMC [--update]

Compiles the programs of models/ for sm_80 and sm_90a (`pvdmc --emit figures`, no GPU) and compares what
the cubins say with models.txt: registers, occupancy, instruction classes of every kernel, launches and
predicted operations and bytes of every model. pvdmc itself fails where a kernel warns, spills, uses
atomics, does not fit a multiprocessor, has less than 2.5 mma.sync a ldmatrix, or lacks the 16-byte
accesses it should have. Figures belong to one version of NVRTC and are not compared under another.
Nearly all bytes of launches that are bound by memory must be moved 16 at a time. Of plans in bf16 the
kernels of attention alone are looked at, and not compared. Ends with `N passed, N failed[, N skipped]`.
"""
import difflib
import itertools
import os
import re
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
GOLDEN = os.path.join(HERE, "models.txt")
WIDE = {"pvdm-tiny": 90}       # percent of the bytes of launches bound by memory, at least; others: 98
MODELS = ["pvdm", "pvdm-tiny", "pvdm-concat", "planes-dit"]


def figures(pvdmc, model, *options):
    """First line, kernel lines, use lines, whether all is well, messages."""
    done = subprocess.run([pvdmc, os.path.join(ROOT, "models", model + ".model"), "--target", "cuda",
                           "--emit", "figures", *options], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    if done.returncode == 3:
        return None, [], [], False, done.stderr
    lines = done.stdout.splitlines() or [""]
    uses = [line[4:] for line in lines[1:] if line.startswith("use ")]
    return (lines[0], [line for line in lines[1:] if not line.startswith("use ")], uses,
            done.returncode == 0, done.stderr)


def main():
    pvdmc, passed, failed = sys.argv[1], 0, 0
    kernels, uses, version = set(), [], ""
    for model, mixed in itertools.product(MODELS, (False, True)):
        options = ["--dtype", "bf16", "--kernels", "attention"] if mixed else []
        first, lines, used, good, messages = figures(pvdmc, model, *options)
        if first is None:
            print(f"skipped: {messages.strip()}\n0 passed, 0 failed, 1 skipped")
            return 0
        version = first
        kernels |= set() if mixed else set(lines)
        uses += [f"{model}: {line}" for line in used]
        wide = re.search(r"bound by memory: .*, ([\d.]+) % by", "\n".join(used))
        if not mixed and good and (wide is None or float(wide[1]) < WIDE.get(model, 98)):
            good, messages = False, f"too few bytes are moved 16 at a time: {wide and wide[0]}"
        if mixed and good and not any(" HMMA " in line for line in lines):
            good, messages = False, "no attention in bf16 is on mma.sync"
        passed, failed = passed + good, failed + (not good)
        if not good:
            print(f"FAIL {model} {' '.join(options)}: {messages.strip()}")
            print("\n".join(line for line in lines if "WRONG" in line)[:8000])
    text = "\n".join([version.split(",")[0], *sorted(kernels), *uses, ""])
    if "--update" in sys.argv:
        with open(GOLDEN, "w") as file:
            file.write(text)
    golden = open(GOLDEN).read() if os.path.exists(GOLDEN) else ""
    if golden.split("\n")[0] != text.split("\n")[0]:
        print(f"figures are not compared: they are of '{golden.split(chr(10))[0]}', this is '{version}'")
    elif golden == text:
        passed += 1
    else:
        failed += 1
        print("FAIL figures differ from tests/simt/models.txt (--update writes it):")
        print("\n".join(difflib.unified_diff(golden.split("\n"), text.split("\n"), "then", "now",
                                             lineterm="", n=0))[:12000])
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


sys.exit(main())
