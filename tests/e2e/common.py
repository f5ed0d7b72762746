"""What the end-to-end tests share: compiling a model once, running it, safetensors, errors.

Only the standard library is used, so that the files are read by something that is not the project.
"""
import array
import hashlib
import json
import math
import operator
import os
import struct
import subprocess

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PVDMC = os.environ.get("PVDMC", os.path.join(ROOT, "out", "release", "pvdmc"))
TARGET = os.environ.get("PVDM_TEST_TARGET")  # what executables are compiled for, if not by the test
EMULATOR = os.path.join(os.path.dirname(PVDMC), "lib", "libpvdm_fakecuda.so")   # as a CUDA driver
OUT = os.path.join(ROOT, "out", "tests")
GOLDEN = os.path.join(ROOT, "tests", "golden")
# the whole set, if it is there
FULL_GOLDEN = os.path.join(os.path.dirname(ROOT), "shared", "golden")


class Skip(Exception):
    """The test cannot run here; the text says what it lacks."""


def run(*command, status=0, cwd=ROOT, env=None, timeout=900):
    """Runs a command, checks its exit status (None: any), gives back its output (both streams)."""
    done = subprocess.run([str(c) for c in command], cwd=cwd, text=True, errors="replace",
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=timeout,
                          env=None if env is None else {**os.environ, **env})
    if status is not None and done.returncode != status:
        raise AssertionError(f"status {done.returncode}, not {status}: "
                             f"{' '.join(map(str, command))}\n{done.stdout[-4000:]}")
    return done.stdout


def compiled(model, *flags):
    """The executable of a model file with these flags; compiled once a test run."""
    path = model if os.path.isabs(model) else os.path.join(ROOT, "models", model)
    if TARGET and "--target" not in flags:
        flags = (*flags, "--target", TARGET)
    key = hashlib.sha256("\0".join((path, *flags)).encode()).hexdigest()[:12]
    exe = os.path.join(OUT, "bin", f"{os.path.basename(path)[:-6]}-{key}")
    if not os.path.exists(exe) or os.path.getmtime(exe) < max(
            os.path.getmtime(PVDMC), os.path.getmtime(path), newest_model()):
        os.makedirs(os.path.dirname(exe), exist_ok=True)
        run(PVDMC, path, "-o", exe, *flags)
    return exe


def newest_model():
    folder = os.path.join(ROOT, "models")
    return max(os.path.getmtime(os.path.join(folder, name)) for name in os.listdir(folder))


def scratch(name):
    """A fresh folder for the files of one test."""
    folder = os.path.join(OUT, "scratch", name)
    subprocess.run(["rm", "-rf", folder], check=True)
    os.makedirs(folder)
    return folder


# ---- safetensors ----

CODES = {"F32": ("f", 4), "F64": ("d", 8), "I64": ("q", 8), "I32": ("i", 4), "U8": ("B", 1),
         "BOOL": ("B", 1)}


class Tensors:
    """A safetensors file, tensors read on demand as flat arrays."""

    def __init__(self, path):
        self.path = path
        with open(path, "rb") as file:
            size = struct.unpack("<Q", file.read(8))[0]
            self.header = json.loads(file.read(size))
        self.base = 8 + size
        self.metadata = self.header.pop("__metadata__", {})

    def __contains__(self, name):
        return name in self.header

    def names(self, prefix=""):
        return [name for name in self.header if name.startswith(prefix)]

    def shape(self, name):
        return self.header[name]["shape"]

    def get(self, name):
        entry = self.header[name]
        begin, end = entry["data_offsets"]
        with open(self.path, "rb") as file:
            file.seek(self.base + begin)
            raw = file.read(end - begin)
        if entry["dtype"] == "F16":
            return array.array("f", struct.unpack(f"<{len(raw) // 2}e", raw))
        return array.array(CODES[entry["dtype"]][0], raw)


def write_tensors(path, tensors):
    """tensors: {name: (dtype, shape, flat values)}"""
    header, blobs, at = {}, [], 0
    for name, (dtype, shape, values) in tensors.items():
        raw = array.array(CODES[dtype][0], values).tobytes()
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(raw)]}
        blobs.append(raw)
        at += len(raw)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.writelines(blobs)


# ---- comparison ----

def norm(values):
    return math.sqrt(sum(map(operator.mul, values, values)))


def relative_error(have, want):
    """|have - want| / |want| in L2; the sizes must agree, and numbers be finite."""
    assert len(have) == len(want), f"{len(have)} elements, not {len(want)}"
    difference = norm(list(map(operator.sub, have, want)))
    size = norm(want)
    assert math.isfinite(difference), "not finite"
    return difference / size if size else difference


def check_close(have, want, bound, what):
    error = relative_error(have, want)
    assert error <= bound, f"{what}: relative error {error:.3e}, bound {bound:g}"
    return error


def permute(values, shape, perm):
    """Elements of a tensor of that shape in the order of the permuted axes."""
    strides = [1] * len(shape)
    for i in range(len(shape) - 2, -1, -1):
        strides[i] = strides[i + 1] * shape[i + 1]
    index = [0]
    for axis in perm:
        index = [base + i * strides[axis] for base in index for i in range(shape[axis])]
    return array.array(values.typecode, [values[i] for i in index])


def statistics(values):
    """The 74 numbers of a `gradstat`: L2 norm, mean, first 8, 64 samples (see golden/README.md)."""
    n = len(values)
    first = list(values[:8]) + [0.0] * (8 - min(n, 8))
    return [norm(values), math.fsum(values) / n, *first, *(values[k * n // 64] for k in range(64))]
