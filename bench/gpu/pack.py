#!/usr/bin/env python3
"""Builds what bench/gpu.sh runs on a machine with a GPU, under out/gpu: at most 64 MiB in all.

usage: sh bench/gpu.sh pack [--small] [--target cpu,simt] [--build FOLDER]

bin/    executables of models: pvdm-tiny with the whole ladder, PVDM-L (not with --small)
cases/  the tests of kernels, which take a driver when PVDM_CASES names one
lib/    the shared libraries of those that are not the C library's
"""
import argparse
import json
import os
import re
import shutil
import subprocess
import sys

from sources import sources_hash

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
OUT = os.path.join(ROOT, "out", "gpu")
LIMIT = 64 << 20
SYSTEM = re.compile(r"^(linux-vdso|ld-linux|libc|libm|libdl|libpthread|librt)\b")
MODELS = [  # name, file, options; small ones first
    ("tiny", "models/pvdm-tiny.model", ["--unfused-too"]),
    ("large", "models/pvdm.model", []),
]


def call(*command):
    print("+", " ".join(command), flush=True)
    subprocess.run(command, cwd=ROOT, check=True)


def case_tests():
    folder = os.path.join(ROOT, "tests", "simt")
    for name in sorted(os.listdir(folder)):
        if name.startswith("test_") and name.endswith(".cc"):
            with open(os.path.join(folder, name), encoding="ascii") as file:
                if file.readline().strip() == "// cases":
                    yield name[:-3]


def strip_into(source, folder):
    target = os.path.join(folder, os.path.basename(source))
    shutil.copy(source, target)
    subprocess.run(["strip", "--strip-debug", target], check=False)


def copy_libraries(program):
    text = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    for name, path in re.findall(r"^\s*(\S+) => (/\S+)", text, re.M):
        if not SYSTEM.match(name) and not os.path.exists(os.path.join(OUT, "lib", name)):
            shutil.copy(path, os.path.join(OUT, "lib", name))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--small", action="store_true", help="only the small model")
    parser.add_argument("--target", default="cpu,cuda")
    parser.add_argument("--arch", default="sm_90a,ptx", help="GPUs of the large model (cuda only)")
    parser.add_argument("--build", default=os.path.join(ROOT, "out", "release"))
    args = parser.parse_args()
    shutil.rmtree(OUT, ignore_errors=True)
    for folder in ("bin", "cases", "lib"):
        os.makedirs(os.path.join(OUT, folder))
    if not os.path.exists(os.path.join(args.build, "build.ninja")):
        call("cmake", "--preset", "release")
    tests, before = list(case_tests()), sources_hash(ROOT)
    call("cmake", "--build", args.build, "-j2", "--target", "pvdmc", "pvdm32", *tests)
    for test in tests:
        strip_into(os.path.join(args.build, "tests", "simt", test), os.path.join(OUT, "cases"))
        copy_libraries(os.path.join(args.build, "tests", "simt", test))
    models = MODELS[:1] if args.small else MODELS
    for name, model, options in models:
        arch = ["--arch", args.arch] if "cuda" in args.target.split(",") else []
        call(os.path.join(args.build, "pvdmc"), model, "--target", args.target, *arch,
             "--march", "x86-64-v3", *options, "-o", os.path.join(OUT, "bin", name))
        subprocess.run(["strip", os.path.join(OUT, "bin", name)], check=False)
    if sources_hash(ROOT) != before:
        sys.exit("pack: the sources of kernels have changed meanwhile: pack again")
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True,
                            check=False).stdout.strip()
    with open(os.path.join(OUT, "pack.json"), "w", encoding="ascii") as file:
        json.dump({"commit": commit, "sources": before, "target": args.target,
                   "models": [m[0] for m in models], "cases": tests}, file, indent=1)
    sizes = [(os.path.getsize(os.path.join(folder, name)), os.path.relpath(os.path.join(folder, name), OUT))
             for folder, _, names in os.walk(OUT) for name in names]
    total = sum(size for size, _ in sizes)
    for size, name in sorted(sizes, reverse=True)[:8]:
        print(f"{size / 2**20:8.2f} MiB  {name}")
    print(f"{total / 2**20:8.2f} MiB in all, at most {LIMIT >> 20}")
    if total > LIMIT:
        sys.exit("pack: too large to be carried: --small, or another --arch")


main()
