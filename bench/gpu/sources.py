"""A hash of the sources that the tests of kernels compile where they run: pack and run must agree."""
import hashlib
import os

FOLDERS = ["codegen/cuda", "tests/simt"]
FILES = ["codegen/kernel_args.h", "runtime/random_bits.h"]


def sources_hash(root):
    paths = list(FILES)
    for folder in FOLDERS:
        paths += [f"{folder}/{name}" for name in os.listdir(os.path.join(root, folder)) if name.endswith((".h", ".cu"))]
    told = hashlib.sha256()
    for path in sorted(paths):
        with open(os.path.join(root, path), "rb") as file:
            told.update(path.encode() + b"\0" + file.read())
    return told.hexdigest()[:16]
