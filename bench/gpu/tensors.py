"""Tensors in safetensors files, and how far two files are apart: with the standard library alone,
but for large ones, for which numpy is taken where it is there."""
import array
import json
import math
import random
import struct

try:
    import numpy
except ImportError:
    numpy = None

CODES = {"F32": "f", "F64": "d", "I64": "q"}


def read(path):
    """{name: (dtype, shape, array)}"""
    with open(path, "rb") as file:
        size = struct.unpack("<Q", file.read(8))[0]
        header = json.loads(file.read(size))
        tensors = {}
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            begin, end = entry["data_offsets"]
            file.seek(8 + size + begin)
            values = array.array(CODES[entry["dtype"]])
            values.frombytes(file.read(end - begin))
            tensors[name] = (entry["dtype"], entry["shape"], values)
    return tensors


def write(path, tensors):
    header, at = {}, 0
    for name, (dtype, shape, values) in tensors.items():
        size = len(values) * values.itemsize
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, _, values in tensors.values():
            values.tofile(file)


def normal(source, count, scale):
    values = array.array("f")
    if numpy is None or count < 100000:
        values.extend(source.gauss(0, scale) for _ in range(count))
    else:
        drawn = numpy.random.default_rng(source.randrange(1 << 30)).standard_normal(
            count, "f4") * numpy.float32(scale)
        values.frombytes(drawn.tobytes())
    return values


def draw(seed, inputs, batch):
    """Numbers for a program's inputs (info --json): normal ones, and indices, each smaller than the
    one before, as a sampler's times are."""
    source = random.Random(seed)
    below = 999
    tensors = {}
    for each in inputs:
        shape = [batch if size == "b" else size for size in each["shape"]]
        count = math.prod(shape)
        if each["dtype"] == "i64":
            tensors[each["name"]] = ("I64", shape,
                                     array.array("q", [source.randrange(below // 2, below)
                                                       for _ in range(count)]))
            below = below // 2
        elif each["dtype"] == "f32":
            tensors[each["name"]] = ("F32", shape, normal(source, count, 0.5))
        else:
            return None
    return tensors


def fill_zeros(path, seed=1):
    """Weights that begin at zero hide what is before them: in this file they become small
    numbers."""
    source = random.Random(seed)
    with open(path, "r+b") as file:
        size = struct.unpack("<Q", file.read(8))[0]
        for name, entry in json.loads(file.read(size)).items():
            if name == "__metadata__" or entry["dtype"] != "F32":
                continue
            begin, end = entry["data_offsets"]
            file.seek(8 + size + begin)
            if file.read(end - begin).count(0) < end - begin:
                continue
            file.seek(8 + size + begin)
            normal(source, (end - begin) // 4, 0.02).tofile(file)


def apart(one, other):
    """(largest |x - y| / |x| of the tensors of two files, its name); a missing tensor is infinitely
    far.

    A gradient that is small beside the largest is measured against a thousandth of that one; what
    is 0 but for rounding, such as a bias's before a norm, against a hundredth.
    """
    left, right = read(one), read(other)
    worst = (0.0, "")
    largest = max((math.sqrt(math.fsum(a * a for a in x)) for _, _, x in left.values()), default=0)
    for name, (_, _, x) in left.items():
        if name not in right or len(right[name][2]) != len(x):
            return math.inf, name
        norm = math.sqrt(math.fsum(a * a for a in x))
        norm = max(norm, (1e-3 if norm > 1e-5 * largest else 1e-2) * largest)
        error = math.sqrt(math.fsum((a - b) ** 2 for a, b in zip(x, right[name][2])))
        error = error / norm if norm else error
        if not error <= worst[0]:
            worst = (error, name)
    return worst


def apart_together(one, other):
    """|x - y| / |x| over all tensors of two files as one vector: what rounding leaves of gradients
    that nearly cancel is small beside the others. A missing tensor is infinitely far."""
    left, right = read(one), read(other)
    for name, (_, _, x) in left.items():
        if name not in right or len(right[name][2]) != len(x):
            return math.inf, name
    error = math.fsum((a - b) ** 2
                      for name, (_, _, x) in left.items() for a, b in zip(x, right[name][2]))
    norm = math.fsum(a * a for _, _, x in left.values() for a in x)
    return math.sqrt(error / norm) if norm else math.sqrt(error), "all tensors"
