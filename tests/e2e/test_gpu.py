"""Whole commands on the emulator of GPUs, through the driver for tests: training, kill and resume,
sampling, reconstruction against the CPU; what is told when a GPU is missing, too small, or
fails."""
import glob
import json
import math
import os
import random
import re
import signal
import subprocess
import time

from common import (EMULATOR, PVDMC, ROOT, Skip, Tensors, check_close, compiled, run, scratch,
                    write_tensors)
from test_train import bits, newest, png, videos

TINY = ["-D", "resolution=16", "-D", "frames=4", "-D", "channels=32", "-D", "ae_heads=2",
        "-D", "ae_dim_head=16", "-D", "num_heads=2", "-D", "mixer_hidden=32"]
CONFIG = """batch: 1
steps: 9
log_every: 1
save_every: 2
seed: 7
keep: 9
"""
GPU = {"PVDM_CUDA_DRIVER": EMULATOR, "PVDM_FAKE_STREAMS": "late", "PVDM_FAKE_PROTECT": "1"}


def setup(name, target="cpu,simt"):
    if not os.path.exists(EMULATOR):
        raise Skip("the emulator is not built")
    folder = scratch(name)
    videos(f"{folder}/data", count=2)
    with open(f"{folder}/c.yaml", "w", encoding="ascii") as file:
        file.write(CONFIG)
    return compiled("pvdm-tiny.model", *TINY, "--target", target), folder


def train(exe, folder, out, *more, stage="autoencoder", device="cuda"):
    return [exe, "train", stage, "--config", f"{folder}/c.yaml", "--data", f"{folder}/data",
            "--out", f"{folder}/{out}", "--device", device, *more]


def losses(folder):
    with open(glob.glob(f"{folder}/*.jsonl")[0], encoding="ascii") as file:
        entries = [json.loads(line) for line in file]
    return [entry["loss"] for entry in entries if "loss" in entry]


def check_losses(folder, count, bound):
    cpu, gpu = losses(f"{folder}/cpu"), losses(f"{folder}/gpu")
    assert len(cpu) == len(gpu) == count, f"{len(cpu)} and {len(gpu)} losses, not {count}"
    return check_close(gpu, cpu, bound, "losses")


def test_gpu_autoencoder():
    """Training on the GPU gives the CPU's numbers; killed and resumed, it gives its own bits."""
    exe, folder = setup("gpu_autoencoder")
    run(*train(exe, folder, "cpu", device="cpu"))
    run(*train(exe, folder, "gpu"), env=GPU)
    worst = check_losses(folder, 9, 1e-5)
    cpu, gpu = Tensors(newest(f"{folder}/cpu")), Tensors(newest(f"{folder}/gpu"))
    for name in cpu.names("ae."):
        worst = max(worst, check_close(gpu.get(name), cpu.get(name), 1e-3, name))
    child = subprocess.Popen(train(exe, folder, "killed"), stdout=subprocess.DEVNULL,
                             stderr=subprocess.DEVNULL,
                             env={**os.environ, **GPU})
    for _ in range(6000):
        if glob.glob(f"{folder}/killed/step-*.safetensors") or child.poll() is not None:
            break
        time.sleep(0.01)
    assert child.poll() is None, "ended before it could be killed"
    child.send_signal(signal.SIGKILL)
    child.wait()
    at = os.path.basename(newest(f"{folder}/killed"))
    run(*train(exe, folder, "killed", "--resume"), env=GPU)
    whole, resumed = bits(newest(f"{folder}/gpu")), bits(newest(f"{folder}/killed"))
    different = [name for name in whole if whole[name] != resumed[name]]
    assert whole.keys() == resumed.keys(), f"{len(different)} tensors differ: {different[:3]}"
    assert not different, f"{len(different)} tensors differ: {different[:3]}"
    return f"worst {worst:.1e}; killed at {at}, {len(whole)} tensors the same"


def test_gpu_diffusion():
    """The other stage, the sampler and the reconstruction of a video, against the CPU."""
    exe, folder = setup("gpu_diffusion")
    run(*train(exe, folder, "ae", "--steps", "2", device="cpu"))
    ae = ["--weights", f"ae={newest(folder + '/ae')}"]
    for device, env in (("cpu", {}), ("cuda", GPU)):
        run(*train(exe, folder, device.replace("cuda", "gpu"), "--steps", "3", *ae,
                   stage="diffusion", device=device),
            env=env)
    worst = check_losses(folder, 3, 1e-5)
    unet = ["--weights", f"unet={newest(folder + '/cpu')}", "--no-ema"]
    told = {}
    for device, env in (("cpu", {}), ("cuda", GPU)):
        run(exe, "sample", *ae, *unet, "--steps", "3,2", "--clips", "2", "--seed", "3",
            "--eta", "0.5",
            "--trace", f"{folder}/{device}.st", "--device", device, env=env)
        told[device] = run(exe, "reconstruct", f"{folder}/data/train/video0/clip", *ae,
                           "--device", device, env=env)
    cpu, gpu = Tensors(f"{folder}/cpu.st"), Tensors(f"{folder}/cuda.st")
    assert cpu.names() == gpu.names() and cpu.names(), gpu.names()
    for name in cpu.names():
        worst = max(worst, check_close(gpu.get(name), cpu.get(name), 1e-5, name))
    assert told["cpu"] == told["cuda"] and "PSNR" in told["cpu"], told
    return f"worst {worst:.1e}"


BF16 = ["-D", "model_channels=64", "-D", "channels=32", "-D", "ae_heads=2", "-D", "ae_dim_head=16"]


def check_mixed(dtype, forward, backward, video):
    """A U-Net of 64 channels in mixed precision against f64, forward and gradients, within bounds
    of the relative 2-norm; the emulator runs the kernels for sm_90a where there are any, unless
    PVDM_WGMMA=0. Then the gradients of an autoencoder, whose loss has sign(y - x) for a gradient,
    which a rounding may turn: `video` bounds those."""
    if not os.path.exists(EMULATOR):
        raise Skip("the emulator is not built")
    folder, rng = scratch(f"gpu_{dtype}"), random.Random(5)
    exact = compiled("pvdm-tiny.model", *BF16, "--dtype", "f64", "--target", "cpu")
    mixed = compiled("pvdm-tiny.model", *BF16, "--dtype", dtype, "--target", "simt")

    def normal(*shape, scale=1.0):
        return "F32", list(shape), [rng.gauss(0, scale) for _ in range(math.prod(shape))]

    def write_weights(instance):  # layers that start as zeros would hide what is behind them
        run(mixed, "weights", "init", "--instance", instance, "--seed", "5",
            "-o", f"{folder}/first.st")
        first, weights = Tensors(f"{folder}/first.st"), {}
        for name in first.names():
            values = first.get(name)
            weights[name] = ("F32", first.shape(name), [x + rng.gauss(0, 0.03) for x in values])
        write_tensors(f"{folder}/{instance}.st", weights)

    write_weights("unet")
    write_tensors(f"{folder}/in.st",
                  {"x": normal(2, 4, 192), "cond": normal(2, 4, 192), "x_start": normal(2, 4, 192),
                   "noise": normal(2, 4, 192), "t": ("I64", [2], [10, 500])})
    write_weights("ae")
    write_tensors(f"{folder}/video.st", {"x": normal(1, 3, 8, 64, 64, scale=0.5)})
    worst, traced = [], {**GPU, "PVDM_FAKE_TRACE": "1"}

    def of_video(program):
        return program.startswith("reconstruct")

    def compute(exe, command, program, name, env):
        weights = f"ae={folder}/ae.st" if of_video(program) else f"unet={folder}/unet.st"
        return run(exe, command, program,
                   "--in", f"{folder}/{'video' if of_video(program) else 'in'}.st",
                   "--weights", weights, "-o", f"{folder}/{name}.st", env=env)

    programs = [("run", "denoise", forward), ("grad", "diffusion_loss", backward)]
    programs.append(("grad", "reconstruction_loss", video))
    if dtype == "bf16":
        programs.append(("run", "reconstruct", forward))
    for command, program, bound in programs:
        compute(exact, command, program, "f64", {})
        launches = compute(mixed, command, program, "mixed", traced)
        for kernel in ("gemm_wgmma", "conv_wgmma"):
            assert of_video(program) or f"{kernel}_{dtype}_" in launches, f"no {kernel} ran"
        assert program != "denoise" or "_up" in launches, "no convolution up-samples what it reads"
        assert program != "reconstruct" or "_gate_" in launches, "no product with gates ran"
        want, have = Tensors(f"{folder}/f64.st"), Tensors(f"{folder}/mixed.st")
        assert want.names() == have.names() and want.names(), have.names()
        norms = {name: math.hypot(*want.get(name)) for name in want.names()}
        # a bias in front of a norm of its channel has no gradient: what is there is rounding
        names = [name for name in norms if norms[name] > 1e-5 * max(norms.values())]
        assert len(names) > 0.9 * len(norms), f"{len(names)} of {len(norms)} tensors have a norm"
        worst.append(max(check_close(have.get(name), want.get(name), bound, name)
                         for name in names))
        if command == "run":
            launches = compute(mixed, command, program, "general", {**traced, "PVDM_WGMMA": "0"})
            assert "_wgmma_" not in launches, "wgmma was to be left aside"
            assert f"gemm_{dtype}" in launches, "wgmma was to be left aside"
            for name in names:
                check_close(Tensors(f"{folder}/general.st").get(name), want.get(name), bound, name)
    return f"worst {worst[0]:.1e}, gradients " + " and ".join(f"{error:.1e}" for error in worst[1:])


def test_gpu_bf16():
    """Values have 8 bits, an error of 2e-3 each. Measured: 1.2e-2, gradients 4.3e-2
    (the bias of a layer next to the input) and 2.3e-2, reconstruction 5.6e-3."""
    return check_mixed("bf16", 2e-2, 5e-2, 5e-2)


def test_gpu_f16():
    """Values have 11 bits, gradients are those of the scaled loss. Measured: 1.5e-3, gradients
    4.5e-3 and 8.0e-3."""
    return check_mixed("f16", 3e-3, 8e-3, 2e-2)


def test_gpu_scaling():
    """Loss scaling of f16: steps whose gradients overflow are left out and halve the scale; a run
    that is killed between them and resumed gives its own bits."""
    if not os.path.exists(EMULATOR):
        raise Skip("the emulator is not built")
    folder = scratch("gpu_scaling")
    exe = compiled(f"{ROOT}/tests/models/scaling.model", "--dtype", "f16", "--target", "simt")
    for i in range(2):
        os.makedirs(f"{folder}/data/train/video{i}")
        png(f"{folder}/data/train/video{i}/0.png", 8, 8, lambda x, y, i=i: (30 * x, 30 * y, 90 * i))
    with open(f"{folder}/c.yaml", "w", encoding="ascii") as file:
        file.write("batch: 2\nlog_every: 1\nsave_every: 1\nseed: 7\nkeep: 99\n")

    def fit(out, steps, *more):
        run(exe, "train", "fit", "--config", f"{folder}/c.yaml", "--data", f"{folder}/data",
            "--out", f"{folder}/{out}",
            "--steps", str(steps), "--set", "gain=3000", *more, env=GPU)
        return f"{folder}/{out}"

    whole, parts = fit("whole", 12), fit("parts", 2)
    fit("parts", 12, "--resume")
    for step in (3, 12):
        name = f"step-{step:08d}.safetensors"
        assert bits(f"{whole}/{name}") == bits(f"{parts}/{name}"), f"other bits in step {step}"
    logs = []
    for out in (whole, parts):
        with open(f"{out}/log.jsonl", encoding="ascii") as file:
            entries = [json.loads(line) for line in file]
        logs.append([(entry["loss"], entry["loss_scale"], entry["skipped"]) for entry in entries
                     if "loss" in entry])
    assert logs[0] == logs[1], logs
    skipped = [int(entry[2]) for entry in logs[0]]
    assert skipped[-1] == skipped[2] == 3, f"left out: {skipped}"
    assert all(scale == 65536 / 2 ** count for _, scale, count in logs[0]), logs[0]
    first = bits(f"{whole}/step-00000001.safetensors")
    second = bits(f"{whole}/step-00000002.safetensors")
    assert first == second, "a step that was left out changed something"
    assert logs[0][-1][0] < 0.9 * logs[0][0][0], logs[0]
    return f"{skipped[-1]} of 12 steps left out"


def test_gpu_cublaslt():
    """Products by (a fake) cuBLASLt: chosen by measuring, checked against our kernel, kept for the
    next start."""
    if not os.path.exists(EMULATOR):
        raise Skip("the emulator is not built")
    folder, rng = scratch("gpu_cublaslt"), random.Random(6)
    exe = compiled(f"{ROOT}/tests/models/filters.model", "--target", "simt")
    x = "F32", [2, 3, 8, 8], [rng.gauss(0, 1) for _ in range(384)]
    write_tensors(f"{folder}/in.st", {"x": x, "target": x})
    run(exe, "weights", "init", "--instance", "net", "-o", f"{folder}/w.st")

    def grad(name, when, cache, mode=""):
        env = {**GPU, "PVDM_CUBLASLT": EMULATOR, "PVDM_FAKE_TRACE": "1", "PVDM_FAKE_CUBLASLT": mode,
               "XDG_CACHE_HOME": f"{folder}/{cache}"}
        told = run(exe, "grad", "distance", "--in", f"{folder}/in.st",
                   "--weights", f"net={folder}/w.st", "--repeat",
                   "3", "-o", f"{folder}/{name}.st", "--cublaslt", when, env=env)
        return told.count("fake cuBLASLt"), Tensors(f"{folder}/{name}.st")

    def kept(cache):
        with open(f"{folder}/{cache}/pvdmc/cublaslt", encoding="ascii") as file:
            return [line.split()[-1] == "own" for line in file]

    count, want = grad("off", "off", "none")
    assert count == 0
    measured, first = grad("first", "on", "here")
    again, second = grad("second", "auto", "here")
    assert again > 0 and measured > again and not all(kept("here")), (measured, again, kept("here"))
    assert bits(f"{folder}/first.st") == bits(f"{folder}/second.st")
    worst = max(check_close(first.get(name), want.get(name), 1e-5, name) for name in want.names())
    grad("wrong", "on", "there", "wrong")
    assert all(kept("there")), "a wrong algorithm was taken"
    assert bits(f"{folder}/wrong.st") == bits(f"{folder}/off.st")
    told = run(exe, "grad", "distance", "--cublaslt", "on", "--device", "cuda", status=3,
               env={**GPU, "PVDM_CUBLASLT": "/nowhere.so"})
    assert "cuBLASLt cannot be used" in told, told
    told = run(exe, "grad", "distance", "--cublaslt", "perhaps", status=2, env=GPU)
    assert "--cublaslt is on, off or auto" in told, told
    return f"worst {worst:.1e}; {again} products of {len(kept('here'))} shapes"


def test_gpu_filters():
    """Mixed precision keeps filters in an order of its own: not in files. Checkpoints go to f32 and
    back, and a run that is resumed gives its own bits."""
    if not os.path.exists(EMULATOR):
        raise Skip("the emulator is not built")
    folder, model = scratch("gpu_filters"), f"{ROOT}/tests/models/filters.model"
    exact = compiled(model, "--target", "cpu")
    mixed = compiled(model, "--dtype", "bf16", "--target", "simt")
    rng = random.Random(4)
    x = "F32", [2, 3, 8, 8], [rng.gauss(0, 1) for _ in range(384)]
    write_tensors(f"{folder}/in.st", {"x": x, "target": x})
    for i in range(2):
        os.makedirs(f"{folder}/data/train/video{i}")
        png(f"{folder}/data/train/video{i}/0.png", 8, 8, lambda x, y, i=i: (30 * x, 30 * y, 90 * i))
    with open(f"{folder}/c.yaml", "w", encoding="ascii") as file:
        file.write("batch: 2\nsave_every: 2\nseed: 7\nkeep: 9\n")

    def train_to(exe, steps, out, *more):
        run(exe, "train", "fit", "--config", f"{folder}/c.yaml", "--data", f"{folder}/data",
            "--out", f"{folder}/{out}",
            "--steps", str(steps), *more, env=GPU)
        return newest(f"{folder}/{out}")

    whole = {exe: train_to(exe, 6, name) for exe, name in ((exact, "f32"), (mixed, "bf16"))}
    start = Tensors(train_to(exact, 2, "start"))
    parts, worst = {}, 0
    for first, then, out in ((mixed, mixed, "same"), (mixed, exact, "to"), (exact, mixed, "from")):
        train_to(first, 2, out)
        parts[out] = train_to(then, 6, out, "--resume")
    assert bits(parts["same"]) == bits(whole[mixed])
    want = Tensors(whole[exact])
    for name in want.names():
        have = [Tensors(parts[out]).get(name) for out in ("same", "to", "from")]
        if "weight" in name and len(want.shape(name)) > 3:     # what four steps changed
            moved = math.dist(want.get(name), start.get(name))
            worst = max(worst, *(math.dist(values, want.get(name)) / moved for values in have))
    assert worst < 0.3, f"filters differ by {worst:.2f} of what they moved"
    for command, program, bound in (("run", "restore", 1e-2), ("grad", "distance", 5e-2)):
        for exe, name in ((exact, "f32"), (mixed, "bf16")):
            run(exe, command, program, "--in", f"{folder}/in.st",
                "--weights", f"net={whole[mixed]}",
                "-o", f"{folder}/{name}.st", env=GPU)
        a, b = Tensors(f"{folder}/f32.st"), Tensors(f"{folder}/bf16.st")
        for name in a.names():
            check_close(b.get(name), a.get(name), bound, name)
    return f"{worst:.2f} of the way"


def test_gpu_residuals():
    """A product behind attention over frames adds its result where that lies by frames, without a
    kernel of its own: in f64 as level 0 has it, in bf16 within rounding. Measured: 4.1e-3."""
    if not os.path.exists(EMULATOR):
        raise Skip("the emulator is not built")
    folder, model = scratch("gpu_residuals"), f"{ROOT}/tests/models/residuals.model"
    exact = compiled(model, "--dtype", "f64", "--target", "cpu", "--unfused-too")
    mixed = compiled(model, "--dtype", "bf16", "--target", "simt")
    rng, worst = random.Random(8), 0
    write_tensors(f"{folder}/in.st",
                  {"x": ("F32", [2, 6, 40, 64], [rng.gauss(0, 1) for _ in range(2 * 6 * 40 * 64)])})
    run(exact, "weights", "init", "--instance", "net", "--seed", "3", "-o", f"{folder}/w.st")
    for command, program in (("run", "mix"), ("grad", "loss")):
        found = {}
        for name, exe, more in (("plain", exact, ("--level", "0")), ("fused", exact, ()),
                                ("mixed", mixed, ())):
            run(exe, command, program, "--in", f"{folder}/in.st", "--weights",
                f"net={folder}/w.st", "-o", f"{folder}/{name}.st", *more, env=GPU)
            found[name] = Tensors(f"{folder}/{name}.st")
        for name in found["plain"].names():
            want = found["plain"].get(name)
            check_close(found["fused"].get(name), want, 1e-12, name)
            worst = max(worst, check_close(found["mixed"].get(name), want, 1e-2, name))
    for dtype in ("f32", "bf16"):
        fused = run(PVDMC, model, "--emit", "fused", "--dtype", dtype, "--target", "cuda")
        mix = fused.split("\nplan ")[0]
        assert mix.count("\n") == 5 and "contract bias residual" in mix, mix
    return f"worst {worst:.1e}"


def test_gpu_given():
    """Two optimizers, sums of micro-steps, given draws, timed kernels: a small model, against the
    CPU."""
    if not os.path.exists(EMULATOR):
        raise Skip("the emulator is not built")
    folder, rng = scratch("gpu_given"), random.Random(2)
    exe = compiled(f"{ROOT}/tests/language/accept/train-and-sample.model", "--target", "cpu,simt")

    def numbers(*shape):
        return "F32", list(shape), [rng.gauss(0, 1) for _ in range(math.prod(shape))]

    write_tensors(f"{folder}/given.st",
                  {"x": numbers(2, 3, 2, 4, 4), "noise.1": numbers(2, 8), "start.0": numbers(2, 8)})
    run(exe, "weights", "init", "--instance", "a", "-o", f"{folder}/a.st")
    for device, env in (("cpu", {}), ("cuda", GPU)):
        run(exe, "train", "both", "--replay", f"{folder}/given.st", "--steps", "6",
            "--state", f"{folder}/{device}.state", "--device", device, env=env)
        run(exe, "sample", "--weights", f"{folder}/a.st",
            "--noise", f"{folder}/given.st", "--trace",
            f"{folder}/{device}.trace", "--seed", "3", "--device", device, env=env)
    worst = 0
    for what in ("state", "trace"):
        cpu, gpu = Tensors(f"{folder}/cpu.{what}"), Tensors(f"{folder}/cuda.{what}")
        assert cpu.names() == gpu.names() and cpu.names(), gpu.names()
        for name in cpu.names():
            worst = max(worst, check_close(gpu.get(name), cpu.get(name), 1e-5, name))
    told = run(exe, "train", "both", "--replay", f"{folder}/given.st", "--steps", "2",
               "--device", "cuda", "--profile",
               env=GPU)
    assert "seconds in kernels on GPU 0 (SIMT emulator)" in told and "gemm" in told, told
    return f"worst {worst:.1e}"


def test_gpu_troubles():
    exe, folder = setup("gpu_troubles", target="simt")
    command = train(exe, folder, "out")[:-2]
    none = {"PVDM_CUDA_DRIVER": f"{folder}/libcuda.so.1"}
    told = run(*command, status=3, env=none)
    assert "kernels for GPUs alone (the emulator), and no driver of CUDA" in told, told
    assert "simt" in run(exe, "info", env=none)
    told = run(*command, "--device", "cpu", status=3, env=GPU)
    assert "no kernels for the CPU" in told, told
    told = run(*command, "--batch", "100000", status=3, env=GPU)
    fits = re.search(
        r"train autoencoder needs .* at batch 100000; .* are free on the GPU; batch (\d+) fits",
        told)
    assert fits and int(fits.group(1)) > 1, told
    told = run(*command, status=3, env={**GPU, "PVDM_FAKE_FAULT": "9"})
    assert re.search(r"kernel \S+ of \S+\.model:\d+ .*failed on GPU 0 \(SIMT emulator\): "
                     r"an illegal memory access", told), told
    told = run(*command, status=3, env={**GPU, "PVDM_FAKE_FAULT": "1500"})
    saved = re.search(r"the checkpoint of step (\d+) is whole; --resume goes on from it", told)
    assert saved, told
    run(*command, "--resume", env=GPU)
    assert newest(f"{folder}/out").endswith("00000009.safetensors")
    return f"failed after step {saved.group(1)}, resumed"
