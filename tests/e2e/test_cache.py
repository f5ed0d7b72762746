"""The cache of the kernel library's objects: used, damaged, unusable, by several at once."""
import os
import subprocess

from common import PVDMC, run, scratch


def small_model(folder):
    path = f"{folder}/small.model"
    with open(path, "w", encoding="ascii") as file:
        file.write("program twice(x: [b, 8]) -> y = silu(x) * 2\n")
    return path


def compiles(model, folder, name, *flags):
    """How many files of the kernel library one compilation hands to the C compiler."""
    told = run(PVDMC, model, "-o", f"{folder}/{name}", "--verbose", *flags,
               env={"XDG_CACHE_HOME": f"{folder}/cache"})
    return sum(" -c " in line and "codegen/cpu/" in line for line in told.splitlines())


def test_object_cache():
    folder = scratch("cache")
    model, cache = small_model(folder), f"{folder}/cache/pvdmc"
    count = compiles(model, folder, "b")
    objects = sorted(os.listdir(cache))
    assert count > 0 and len(objects) == count and all(name.endswith(".o") for name in objects), objects
    assert compiles(model, folder, "c") == 0
    with open(f"{folder}/b", "rb") as one, open(f"{folder}/c", "rb") as two:
        assert one.read() == two.read(), "an object of the cache differs"
    assert compiles(model, folder, "d", "--march", "x86-64-v3") == count, "other flags, the same objects"

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
    run(PVDMC, model, "-o", f"{folder}/h", env={"XDG_CACHE_HOME": f"{folder}/file"})
    subprocess.run(["rm", "-rf", cache], check=True)
    jobs = [subprocess.Popen([PVDMC, model, "-o", f"{folder}/p{i}"],
                             env={**os.environ, "XDG_CACHE_HOME": f"{folder}/cache"}) for i in range(2)]
    assert all(job.wait() == 0 for job in jobs)
    assert sorted(name for name in os.listdir(cache) if name.endswith(".o"))[:count] == objects
