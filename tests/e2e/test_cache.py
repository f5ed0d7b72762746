"""The cache of objects, of the kernel library and of emitted text: used, damaged, unusable, by
several at once."""
import os
import subprocess

from common import PVDMC, run, scratch


def small_model(folder):
    path = f"{folder}/small.model"
    with open(path, "w", encoding="ascii") as file:
        file.write("program twice(x: [b, 8]) -> y = silu(x) * 2\n")
    return path


def quick_compiler(folder):
    """A C compiler that does not optimize: what it makes is not looked at here."""
    path = f"{folder}/cc"
    with open(path, "w", encoding="ascii") as file:
        file.write('#!/bin/sh\nexec cc "$@" -O0\n')
    os.chmod(path, 0o755)
    return path


def compiles(model, folder, name, *flags):
    """How many C files one compilation hands to the C compiler."""
    told = run(PVDMC, model, "-o", f"{folder}/{name}", "--verbose", *flags,
               env={"XDG_CACHE_HOME": f"{folder}/cache", "CC": quick_compiler(folder)})
    return sum(" -c " in line and ".c -o " in line for line in told.splitlines())


def test_object_cache():
    folder = scratch("cache")
    model, cache = small_model(folder), f"{folder}/cache/pvdmc"
    count = compiles(model, folder, "b")
    objects = sorted(os.listdir(cache))
    assert count > 0 and len(objects) == count, objects
    assert all(name.endswith(".o") for name in objects), objects
    assert compiles(model, folder, "c") == 0
    with open(f"{folder}/b", "rb") as one, open(f"{folder}/c", "rb") as two:
        assert one.read() == two.read(), "an object of the cache differs"
    assert compiles(model, folder, "d",
                    "--march", "x86-64-v3") == count, "other flags, the same objects"

    with open(f"{cache}/{objects[0]}", "r+b") as file:       # a damaged object is none
        file.seek(100)
        file.write(b"damage")
    with open(f"{cache}/{objects[1]}", "wb"):
        pass
    assert compiles(model, folder, "f", "--no-cache") == count
    assert compiles(model, folder, "f") == 2
    assert compiles(model, folder, "g") == 0
    run(f"{folder}/f", "info")

    with open(f"{folder}/file", "wb"):                       # an unusable folder: all is compiled
        pass
    quick = {"CC": quick_compiler(folder)}
    run(PVDMC, model, "-o", f"{folder}/h", env={"XDG_CACHE_HOME": f"{folder}/file", **quick})
    subprocess.run(["rm", "-rf", cache], check=True)
    jobs = [subprocess.Popen([PVDMC, model, "-o", f"{folder}/p{i}"],
                             env={**os.environ, "XDG_CACHE_HOME": f"{folder}/cache", **quick})
            for i in range(2)]
    assert all(job.wait() == 0 for job in jobs)
    assert sorted(name for name in os.listdir(cache) if name.endswith(".o"))[:count] == objects


def many_kernels(folder, name, kernels):
    """A model with so many elementwise kernels."""
    path = f"{folder}/{name}.model"
    functions = ["silu", "tanh", "exp", "sin", "cos", "abs", "sigmoid"]
    with open(path, "w", encoding="ascii") as file:
        for i in range(kernels):
            outer, middle, inner = (functions[k] for k in (i % 7, i // 7 % 7, i // 49))
            file.write(f"program p{i}(x: [b, 8]) -> y = {outer}({middle}({inner}(x)))\n")
    return path


def test_new_kernel():
    folder = scratch("cache_new")
    first = compiles(many_kernels(folder, "few", 150), folder, "few")
    # tables, a file of kernels
    library = compiles(small_model(folder), folder, "small", "--no-cache") - 2
    again = compiles(many_kernels(folder, "more", 151), folder, "more")
    assert first - library >= 5, f"{first - library} files of emitted text"
    assert again <= 3, f"{again} files compiled for one new kernel"  # tables, a file or its halves
    assert compiles(f"{folder}/more.model", folder, "same") == 0
    with open(f"{folder}/more", "rb") as one, open(f"{folder}/same", "rb") as two:
        assert one.read() == two.read(), "an object of the cache differs"
