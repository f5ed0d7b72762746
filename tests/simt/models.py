#!/usr/bin/env python3
"""Static figures of every CUDA kernel of the models: models.py PVDMC [--update]

Compiles the programs of models/ for sm_80 and sm_90a (`pvdmc --emit figures`, no GPU) and compares
what the cubins say with models.txt: registers, occupancy, instruction classes of every kernel,
launches and predicted operations and bytes of every model. pvdmc itself fails where a kernel warns,
spills, uses atomics, does not fit a multiprocessor, has less than 2.5 mma.sync a ldmatrix, or lacks
the 16-byte accesses it should have. Figures belong to one version of NVRTC and are not compared
under another. Nearly all bytes of launches that are bound by memory must be moved 16 at a time.

Of plans in bf16 and f16 the kernels of attention are looked at, and those of products for sm_90a
(PVDM in bf16), which pvdmc wants to have HGMMA and UTMALDG and no HMMA; with PVDM_SLOW=1 all
kernels of all models in both. Their figures are not compared. All other products of these plans are
on mma.sync, on sm_90a too: what they are, for which reason, is in models.txt, the reasons are among
REASONS, and it is little of the work. Ends with `N passed, N failed[, N skipped]`.
"""
import difflib
import os
import re
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
GOLDEN = os.path.join(HERE, "models.txt")
WIDE = {"pvdm-tiny": 90}  # percent of the bytes of launches bound by memory, at least; others: 98
MODELS = ["pvdm", "pvdm-tiny", "pvdm-concat", "planes-dit"]
MIXED = {"bf16": MODELS, "f16": ["pvdm-tiny"]}         # dtypes, and what is looked at in them
# Why a product is not on wgmma: too little for its tiles; 3 channels of an image; images and
# weights that are kept in f32; operands that are normalized as they are loaded, tables of images
# of few positions
REASONS = {"few rows", "few columns", "few channels", "short", "channels not in eights",
           "an operand in f32",
           "a norm taken apart", "few positions"}
# percent of the products' FLOPs that are on it, at least; others: 98
WGMMA = {"pvdm-tiny": 75, "pvdm": 97, "pvdm-concat": 97}
SLOW = os.environ.get("PVDM_SLOW") == "1"


def figures(pvdmc, model, *options):
    """First line, kernel lines, use lines, whether all is well, messages."""
    done = subprocess.run([pvdmc, os.path.join(ROOT, "models", model + ".model"),
                           "--target", "cuda",
                           "--emit", "figures", *options], text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE)
    if done.returncode == 3:
        return None, [], [], False, done.stderr
    lines = done.stdout.splitlines() or [""]
    uses = [line[4:] for line in lines[1:] if line.startswith("use ")]
    return (lines[0], [line for line in lines[1:] if not line.startswith("use ")], uses,
            done.returncode == 0, done.stderr)


def mixed_faults(model, lines, uses):
    """What is wrong with plans in mixed precision; "": nothing."""
    share = re.search(r"([\d.]+) % of it on wgmma", "\n".join(uses))
    reasons = {reason for line in uses for reason in re.findall(r"\(no wgmma: ([^)]*)\)", line)}
    if not any(" HMMA " in line for line in lines):
        return "no attention is on mma.sync"
    if reasons - REASONS:
        return f"products are not on wgmma: {', '.join(sorted(reasons - REASONS))}"
    if share is None or float(share[1]) < WGMMA.get(model, 98):
        return f"too little of the products is on wgmma: {share and share[0]}"
    return ""


def main():
    pvdmc, passed, failed = sys.argv[1], 0, 0
    kernels, uses, version = set(), [], ""
    cases = [(model, None) for model in MODELS]
    cases += [(model, dtype) for dtype in MIXED for model in (MODELS if SLOW else MIXED[dtype])]
    for model, dtype in cases:
        some = "wgmma,128x128_sum" if (model, dtype) == ("pvdm", "bf16") else "no wgmma"
        options = ["--dtype", dtype] if dtype else []
        options += ["--kernels", f"attention,{some}"] if dtype and not SLOW else []
        first, lines, used, good, messages = figures(pvdmc, model, *options)
        if first is None:
            print(f"skipped: {messages.strip()}\n0 passed, 0 failed, 1 skipped")
            return 0
        version = first
        kernels |= set() if dtype else set(lines)
        wide = re.search(r"bound by memory: .*, ([\d.]+) % by", "\n".join(used))
        if not dtype and good and (wide is None or float(wide[1]) < WIDE.get(model, 98)):
            good, messages = False, f"too few bytes are moved 16 at a time: {wide and wide[0]}"
        if dtype and good:
            messages = mixed_faults(model, lines, used)
            good = not messages
        if not dtype or model in MIXED[dtype]:
            uses += [f"{model}{dtype and f' {dtype}' or ''}: {line}" for line in used
                     if not dtype or "(no wgmma: " in line or "on wgmma" in line]
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
        of = golden.split("\n")[0]
        print(f"figures are not compared: they are of '{of}', this is '{version}'")
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
