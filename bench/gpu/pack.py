#!/usr/bin/env python3
"""Builds what bench/gpu.sh runs on a machine with a GPU: out/gpu/pack.tar.xz, pack.json beside it.

usage: sh bench/gpu.sh pack [--rehearse] [--arch sm_90a] [--build FOLDER]

bin/     executables of models: pvdm-tiny, and PVDM-L with the whole ladder, in f32 and bf16
cases/   the tests of kernels, which take a driver when PVDM_CASES names one
images/  their kernels, compiled for that GPU

The working tree and this together stay below 64 MiB. What is packed needs nothing but a C library,
no newer than --glibc, and a processor of --march. --rehearse packs small stand-ins for the driver
that tests use, and one case of each template; run.py then takes small batches, and PyTorch on the
CPU.
"""
import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
OUT = os.environ.get("PVDM_GPU_PACK") or os.path.join(ROOT, "out", "gpu")
PARTS = ("bin", "cases", "images")
LIMIT = 64 << 20
SYSTEM = re.compile(r"^(linux-vdso|ld-linux|libc|libm|libdl|libpthread|librt)\b")
TINY, LARGE = "models/pvdm-tiny.model", "models/pvdm.model"
MODELS = [  # name, file, target, options
    ("tiny", TINY, "cpu,cuda", []),
    ("tiny-bf16", TINY, "cuda", ["--dtype", "bf16"]),  # with kernels to run without wgmma too
    ("large", LARGE, "cpu,cuda", ["--unfused-too"]),
    ("large-bf16", LARGE, "cuda", ["--dtype", "bf16", "--unfused-too"]),
]
STAND_IN = ["-D", "resolution=16", "-D", "frames=2", "-D", "channels=16",
            "-D", "ae_dim_head=8", "-D", "mixer_hidden=16", "-D", "model_channels=32",
            "-D", "channel_mult=[1]", "-D", "ndf=4"]


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


def versions_of(text):
    """Versions of the C library that `objdump -p` says a program asks for, the newest first, as (2,
    34)."""
    found = {(int(a), int(b)) for a, b in re.findall(r"\bGLIBC_(\d+)\.(\d+)", text)}
    if "GLIBC_ABI_DT_RELR" in text:  # packed relocations
        found.add((2, 36))
    return sorted(found, reverse=True) or [(0, 0)]


def check_needs(args, folder):
    """Ends the program where something carried would not start on another machine."""
    wrong, newest = [], (0, 0)
    for name in ("bin", "cases"):
        for each in sorted(os.listdir(os.path.join(folder, name))):
            text = subprocess.run(["objdump", "-p", os.path.join(folder, name, each)],
                                  capture_output=True, text=True,
                                  check=True).stdout
            newest = max(newest, versions_of(text)[0])
            wrong += [f"{name}/{each} needs {needed}"
                      for needed in re.findall(r"^\s*NEEDED\s+(\S+)", text, re.M)
                      if not SYSTEM.match(needed)]
    if newest > tuple(int(part) for part in args.glibc.split(".")):
        wrong.append(f"glibc {newest[0]}.{newest[1]} is needed, {args.glibc} is permitted")
    if wrong:
        sys.exit("pack: " + "\npack: ".join(wrong))
    print(f"all executables need the C library alone, of version {newest[0]}.{newest[1]} or later")


def make_images(args, folder, tests):
    """Has each program of cases fill images/ with its kernels."""
    env = {**os.environ, "PVDM_IMAGES": os.path.join(folder, "images"),
           "PVDM_MAKE_IMAGES": args.arch}
    if args.rehearse:
        env.update(PVDM_SAMPLE="1",
                   PVDM_MAKE_IMAGES=os.path.join(args.build, "lib", "libpvdm_fakecuda.so"))
    for test in tests:
        print("+ images of", test, flush=True)
        subprocess.run([os.path.join(args.build, "tests", "simt", test)], cwd=ROOT,
                       check=True, env=env)


def build_models(args, folder):
    for name, model, target, options in MODELS:
        if args.rehearse:
            model, target, options = TINY, target.replace("cuda", "simt"), [*options, *STAND_IN]
        both = args.arch.endswith("a") and "bf16" in name
        archs = f"{args.arch},{args.arch[:-1]}" if both else args.arch
        arch = ["--arch", archs] if "cuda" in target else []
        exe = os.path.join(folder, "bin", name)
        call(os.path.join(args.build, "pvdmc"), model, "--target", target, *arch,
             "--march", args.march,
             *options, "-o", exe)
        subprocess.run(["strip", exe], check=False)


def tree_size():
    """Bytes of the files that travel anyway: tracked, and not ignored."""
    names = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
                           cwd=ROOT,
                           capture_output=True, text=True, check=True).stdout.split("\0")
    paths = [os.path.join(ROOT, name) for name in set(names) if name]
    return sum(os.path.getsize(path) for path in paths if os.path.isfile(path))


def list_sizes(folder):
    sizes = [(os.path.getsize(os.path.join(at, name)),
              os.path.relpath(os.path.join(at, name), folder))
             for at, _, names in os.walk(folder) for name in names]
    for size, name in sorted(sizes, reverse=True)[:8]:
        print(f"{size / 2**20:8.2f} MiB  {name}")


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rehearse", action="store_true", help="for the driver of tests")
    parser.add_argument("--arch", default="sm_90a", help="GPUs, as pvdmc --arch names them")
    parser.add_argument("--glibc", default="2.35", help="of the machine with the GPU (2.35)")
    parser.add_argument("--march", default="x86-64-v3",
                        help="its processor, as gcc names it (x86-64-v3)")
    parser.add_argument("--build", default=os.path.join(ROOT, "out", "pack"),
                        help="folder of a build of its own")
    args = parser.parse_args()
    args.build = os.path.abspath(args.build)
    start = time.time()
    call("cmake", "--preset", "release", "-B", args.build, f"-DPVDM_MARCH={args.march}")
    tests = list(case_tests())
    call("cmake", "--build", args.build, "-j2", "--target", "pvdmc", "pvdm32",
         "pvdm_fakecuda", *tests)
    shutil.rmtree(OUT, ignore_errors=True)
    os.makedirs(OUT)
    with tempfile.TemporaryDirectory() as folder:
        for name in PARTS:
            os.makedirs(os.path.join(folder, name))
        for test in tests:
            strip_into(os.path.join(args.build, "tests", "simt", test),
                       os.path.join(folder, "cases"))
        make_images(args, folder, tests)
        build_models(args, folder)
        check_needs(args, folder)
        list_sizes(folder)
        # far repetitions
        with tarfile.open(os.path.join(OUT, "pack.tar.xz"), "w:xz", preset=9) as archive:
            for name in PARTS:
                archive.add(os.path.join(folder, name), name)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True,
                            check=False).stdout.strip()
    with open(os.path.join(OUT, "pack.json"), "w", encoding="ascii") as file:
        json.dump({"commit": commit, "rehearsal": args.rehearse, "arch": args.arch, "cases": tests},
                  file, indent=1)
    packed, tree = os.path.getsize(os.path.join(OUT, "pack.tar.xz")), tree_size()
    print(f"{packed / 2**20:8.2f} MiB  packed, {tree / 2**20:.2f} MiB of working tree, "
          f"at most {LIMIT >> 20} in all; {time.time() - start:.0f} s")
    if packed + tree > LIMIT:
        sys.exit("pack: too large to be carried")


if __name__ == "__main__":
    main()
