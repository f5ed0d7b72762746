"""Seeded faults of kernels: every template has one, a case looks for it, and tests/simt/README.md
tells of it."""
import glob
import os
import re

from common import ROOT

CUDA = os.path.join(ROOT, "codegen", "cuda")


def text(path):
    with open(path, encoding="utf-8") as file:
        return file.read()


def faults_of(name, seen):
    """Faults that can be seeded in a file or in what it includes, in place or by name."""
    path = os.path.join(CUDA, name)
    if name in seen or not os.path.exists(path):
        return set()
    seen.add(name)
    content = text(path)
    found = set(re.findall(r"#ifn?def (FAULT_\w+)", content))
    for other in re.findall(r'#include "([^"]+)"', content):
        found |= faults_of(other, seen)
    return found


def test_gpu_faults_are_looked_for():
    """A fault that no case looks for proves nothing; a template without one has checks that may
    never fail."""
    simt = os.path.join(ROOT, "tests", "simt")
    looked_for = set(re.findall(r'"(FAULT_\w+)"',
                                "".join(text(path) for path in glob.glob(f"{simt}/test_*.cc"))))
    told = set(re.findall(r"`(FAULT_\w+)`", text(f"{simt}/README.md")))
    every = set()
    for path in sorted(glob.glob(f"{CUDA}/*.cu")):
        found = faults_of(os.path.basename(path), set())
        assert found & looked_for, f"{path} has no seeded fault that a case looks for"
        every |= found
    assert every <= looked_for, f"no case looks for {every - looked_for}"
    assert told <= looked_for, f"README tells of {told - looked_for}, for which no case looks"
    return f"{len(every)} faults"
