"""Models as libraries (`pvdmc --lib`): a C program that links one, and Python that loads one, get
the numbers of the executable, bit by bit."""
import os
import subprocess
import sys

from common import EMULATOR, PVDMC, ROOT, Tensors, run, scratch, write_tensors

TEXT = """type rows = [b, 12]
module Net() {
    first = Linear(12, 12)
    norm  = BatchNorm(12)
    def forward(x: rows) = tanh(norm(first(x)))
}
model net = Net()
program next(x: rows, t: int, cond: rows = none) -> y =
    if cond == none then net(x) * t else net(x) + cond * t
program distance(x: rows, target: rows) -> loss = mean((net(x) - target) ^ 2)
program show(x: rows) -> y: [b, 3, 1, 2, 2] =
    rearrange(x, "b (c t h w) -> b c t h w", t: 1, h: 2, w: 2)
sample few {
    option steps = 2
    option clips = 1
    for clip in 0..clips {
        x = normal(rows, stream: "start")
        for k in reverse(0..steps) {
            x = next(x, k + 1)
            report x
        }
        yield show(x)
    }
}
"""
INCLUDE = os.path.join(os.path.dirname(PVDMC), "include")
CC = os.environ.get("CC", "cc")


def rows(batch, modulus):
    """What library_user.c gives."""
    return "F32", [batch, 12], [(i % modulus - 3) / 4 for i in range(12 * batch)]


def make(name, *flags):
    """(the folder, what is in it: the model's library and executable, weights, inputs)"""
    folder = scratch(name)
    with open(f"{folder}/rows.model", "w", encoding="ascii") as file:
        file.write(TEXT)
    run(PVDMC, f"{folder}/rows.model", "-o", f"{folder}/rows", *flags)
    run(PVDMC, "rows.model", "--lib", *flags, cwd=folder)           # as librows.so
    write_tensors(f"{folder}/w.safetensors", {
        "net.first.weight": ("F32", [12, 12], [(i * 7 % 23 - 11) / 20 for i in range(144)]),
        "net.first.bias": ("F32", [12], [i / 10 for i in range(12)]),
        "net.norm.weight": ("F32", [12], [1 - i / 20 for i in range(12)]),
        "net.norm.bias": ("F32", [12], [i / 30 for i in range(12)]),
        "net.norm.running_mean": ("F32", [12], [0.0] * 12),
        "net.norm.running_var": ("F32", [12], [1.0] * 12)})
    write_tensors(f"{folder}/in.safetensors",
                  {"x": rows(2, 7), "cond": rows(2, 5), "target": rows(2, 5)})
    write_tensors(f"{folder}/five.safetensors", {"x": rows(5, 7)})
    return folder


def told_by_library(folder, *words, env=None):
    """{name: [(shape, values), ...]} of the tensors that library_user prints; its other lines."""
    run(CC, f"{ROOT}/tests/e2e/library_user.c", "-Wall", "-Wextra", "-Werror", "-I", INCLUDE,
        f"{folder}/librows.so", f"-Wl,-rpath,{folder}", "-o", f"{folder}/user")
    tensors, lines = {}, []
    for line in run(f"{folder}/user", f"{folder}/w.safetensors", *words, env=env).splitlines():
        name, _, rest = line.partition(" [")
        if not rest or line.startswith("error "):
            lines.append(line)
            continue
        shape, _, values = rest.partition("]")
        tensors.setdefault(name, []).append(([int(n) for n in shape.split(",") if n],
                                             [float.fromhex(v) for v in values.split()]))
    return tensors, lines


def told_by_executable(folder, *words, env=None):
    out = f"{folder}/out.safetensors"
    run(f"{folder}/rows", *words, "--weights", f"net={folder}/w.safetensors", "--out", out, env=env)
    return Tensors(out)


def check_numbers(folder, tensors, env=None):
    def same(have, file, name):
        assert have == (file.shape(name), list(file.get(name))), name
    told = told_by_executable(folder, "run", "next", "--in", f"{folder}/in.safetensors", "--set",
                              "t=3", env=env)
    same(tensors["y"][0], told, "y")
    same(tensors["y"][1], told, "y")                     # the draws and statistics are as before
    same(tensors["y"][2], told_by_executable(folder, "run", "next", "--in",
                                             f"{folder}/five.safetensors", "--set", "t=3", env=env),
         "y")
    told = told_by_executable(folder, "grad", "distance", "--in", f"{folder}/in.safetensors",
                              env=env)
    for name in ("loss", "grad.x", "grad.net.first.weight"):
        same(tensors[name][0], told, name)


def check_videos(folder, tensors, env=None):
    """Pixels are what the sampler's last value makes, of the first clip and of three."""
    trace = f"{folder}/trace.safetensors"
    run(f"{folder}/rows", "sample", "--weights", f"net={folder}/w.safetensors", "--seed", "5",
        "--batch", "2", "--steps", "3", "--clips", "3", "--trace", trace, env=env)
    reports = Tensors(trace)
    for name, clips in (("video", 3), ("clip", 1)):
        (shape, pixels), = tensors[name]
        assert shape == [clips, 2, 2, 3], (name, shape)
        for clip in range(clips):
            values = reports.get(f"x.{3 * clip + 3}")[12:]           # of the second video
            for i, value in enumerate(pixels[12 * clip:12 * clip + 12]):
                want = 127.5 * (1 + max(-1.0, min(1.0, values[i % 3 * 4 + i // 3])))
                assert abs(value - want) <= 0.51, (name, clip, i, value, want)


def test_library_in_c():
    folder = make("library")
    tensors, lines = told_by_library(folder)
    for part in ("program next", "program distance", "program show", "input x", "input t",
                 "input cond", "output y", "error unknown program 'nexd'; did you mean 'next'?",
                 "error next needs the input 't'", "the batch of 'x' is 5, that of 'cond' is 2",
                 "error there is no video 2: 2 were sampled"):
        assert any(part in line for line in lines), (part, lines)
    check_numbers(folder, tensors)
    check_videos(folder, tensors)
    names = run("nm", "-D", "--defined-only", f"{folder}/librows.so").split()[2::3]
    assert len(names) > 12 and all(name.startswith("pvdm_") for name in names), names
    with open(f"{INCLUDE}/runtime/library.h", encoding="ascii") as file:
        header = file.read()
    assert all(name + "(" in header for name in names), names
    subprocess.run([CC, "-x", "c++", "-fsyntax-only", "-Wall", "-Werror", "-"], input=header,
                   text=True, check=True)


def test_library_refuses():
    folder = scratch("library_refuses")
    text = run(PVDMC, f"{ROOT}/tests/models/small.model", "--lib", "--unfused-too", status=2)
    assert "--unfused-too is for executables" in text, text
    run(PVDMC, f"{ROOT}/tests/models/small.model", "--lib", "-o", f"{folder}/no/lib.so", status=1)


IN_PYTHON = """
import ctypes, sys
class Tensor(ctypes.Structure):
    _fields_ = [("type", ctypes.c_int32), ("rank", ctypes.c_int32), ("dim", ctypes.c_int64 * 8),
                ("data", ctypes.c_void_p)]
pvdm = ctypes.CDLL(sys.argv[1])
pvdm.pvdm_open.restype = pvdm.pvdm_call.restype = ctypes.c_void_p
pvdm.pvdm_message.restype = ctypes.c_char_p
model = ctypes.c_void_p(pvdm.pvdm_open(b"cpu", 1))
files = (ctypes.c_char_p * 1)(sys.argv[2].encode())
assert pvdm.pvdm_weights(model, files, 1, 0) == 0
call = ctypes.c_void_p(pvdm.pvdm_call(model, b"next", 0))
x = (ctypes.c_float * 24)(*[(i % 7 - 3) / 4 for i in range(24)])
x = Tensor(5, 2, (2, 12), ctypes.cast(x, ctypes.c_void_p))
t = ctypes.c_int64(3)
t = Tensor(2, 0, (), ctypes.cast(ctypes.pointer(t), ctypes.c_void_p))
assert pvdm.pvdm_input(call, b"x", ctypes.byref(x)) == 0, pvdm.pvdm_message()
assert pvdm.pvdm_input(call, b"t", ctypes.byref(t)) == 0, pvdm.pvdm_message()
assert pvdm.pvdm_run(call) == 0, pvdm.pvdm_message()
y = Tensor()
assert pvdm.pvdm_output(call, b"y", ctypes.byref(y)) == 0, pvdm.pvdm_message()
print(*[v.hex() for v in ctypes.cast(y.data, ctypes.POINTER(ctypes.c_float))[:24]])
pvdm.pvdm_call_free(call)
pvdm.pvdm_close(model)
"""


def test_library_in_python():
    folder = os.path.join(os.path.dirname(scratch("library_python")), "library")
    if not os.path.exists(f"{folder}/librows.so"):
        make("library")
    told = run(sys.executable, "-c", IN_PYTHON, f"{folder}/librows.so", f"{folder}/w.safetensors")
    write_tensors(f"{folder}/x.safetensors", {"x": rows(2, 7)})
    want = told_by_executable(folder, "run", "next", "--in", f"{folder}/x.safetensors", "--set",
                              "t=3", "--device", "cpu")
    assert [float.fromhex(v) for v in told.split()] == list(want.get("y"))


def test_library_on_emulator():
    folder = make("library_simt", "--target", "simt")
    env = {"PVDM_CUDA_DRIVER": EMULATOR}
    tensors, _ = told_by_library(folder, "cuda", env=env)
    check_numbers(folder, tensors, env)
    check_videos(folder, tensors, env)
