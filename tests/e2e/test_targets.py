"""Targets and architectures: what is refused, what an executable holds, what comes from the
cache."""
import os
import re

from common import EMULATOR, PVDMC, Skip, Tensors, check_close, run, scratch, write_tensors

TEXT = """program gate(x: [b, 8, 6], y: [b, 8, 1]) -> z = silu(x) * y + 1.5
program turned(x: [b, 8, 6]) -> z = tanh(rearrange(x, "b c n -> b n c"))
"""


def small_model(folder, text=TEXT):
    path = f"{folder}/small.model"
    with open(path, "w", encoding="ascii") as file:
        file.write(text)
    return path


def test_targets_refused():
    folder = scratch("targets_refused")
    model = small_model(folder)
    for flags, status, told in (
            (["--target", "tpu"], 2, "unknown target 'tpu'"),
            (["--target", "cpu,"], 2, "unknown target"),
            (["--target", "cuda", "--arch", "sm_75"], 2, "unknown architecture 'sm_75'"),
            (["--target", "cuda", "--arch", "ptx,sm_8x"], 2, "unknown architecture"),
            (["--target", "cpu,cuda", "--dtype", "f64"], 2, "--dtype f64 is for --target cpu"),
            (["--emit", "figures"], 2, "needs --target cuda")):
        text = run(PVDMC, model, "-o", f"{folder}/exe", *flags, status=status)
        assert told in text, text
    text = run(PVDMC, model, "-o", f"{folder}/exe", "--target", "cuda", status=3,
               env={"PVDM_NVRTC": f"{folder}/nothing"})
    assert "NVRTC is not where" in text and not os.path.exists(f"{folder}/exe"), text


def compiled_with(folder, *flags):
    """What --stats tells of a compilation with a cache of its own."""
    return run(PVDMC, f"{folder}/small.model", "-o", f"{folder}/exe", "--stats", *flags,
               env={"XDG_CACHE_HOME": f"{folder}/cache"})


def test_cuda_images():
    folder = scratch("cuda_images")
    small_model(folder)
    probe = run(PVDMC, f"{folder}/small.model", "-o", f"{folder}/exe", "--target", "cuda",
                "--arch", "ptx",
                status=None)
    if "NVRTC was not found" in probe:
        raise Skip("NVRTC is not here")
    flags = ["--target", "cuda", "--arch", "sm_80,sm_90a,ptx"]
    told = compiled_with(folder, *flags)
    modules, images = map(int, re.search(r"in (\d+) modules, (\d+) images", told).groups())
    assert images == 3 * modules, told
    assert f" 0 images from the cache, {2 * modules} compilations" in told, told
    assert "sm_80 " in told and "sm_90a " in told and "compute_80 " in told, told
    told = compiled_with(folder, *flags)
    assert f" {images} images from the cache, 0 compilations" in told, told
    text = run(f"{folder}/exe", "run", "gate", status=3)
    assert "GPU" in text or "CUDA" in text, text
    # one new kernel: one program more or other
    small_model(folder, TEXT + "program other(x: [b, 8, 6]) -> z = exp(x)\n")
    told = compiled_with(folder, *flags)
    assert int(re.search(r"(\d+) images from the cache", told).group(1)) > 0, told


def test_cuda_images_are_chosen():
    """Which image a GPU takes, of a dry run on the driver of tests: its own, PTX, or none, and what
    is told then."""
    if not os.path.exists(EMULATOR):
        raise Skip("the emulator was not built")
    folder = scratch("cuda_chosen")
    small_model(folder)
    for name, arch in (("all", "sm_80,sm_90a,sm_90,ptx"), ("one", "sm_90a,sm_90")):
        told = run(PVDMC, f"{folder}/small.model", "-o", f"{folder}/{name}", "--target", "cuda",
                   "--arch", arch,
                   status=None)
        if "NVRTC was not found" in told:
            raise Skip("NVRTC is not here")
    write_tensors(f"{folder}/in.safetensors", {"x": ("F32", [2, 8, 6], [0.5] * 96)})

    def on(gpu, exe, status, **more):
        return run(f"{folder}/{exe}", "run", "turned", "--in", f"{folder}/in.safetensors",
                   "--device", "cuda",
                   status=status, env={"PVDM_CUDA_DRIVER": EMULATOR, "PVDM_FAKE_DRY": "1",
                                       "PVDM_FAKE_ARCH": str(gpu),
                                       **more})

    for gpu in (80, 86, 90, 120):   # the last one by PTX
        on(gpu, "all", 0)
    on(90, "one", 0)
    told = on(75, "all", 3)
    assert re.search(
        r"compute capability 7\.5\); this executable has sm_80, PTX of compute_80, sm_90a, sm_90\n",
        told), told
    told = on(120, "one", 3)
    assert "compute capability 12.0); this executable has sm_90a, sm_90\n" in told, told
    assert "or with PTX" in told, told
    for gpu in (90, 120):
        told = on(gpu, "all", 3, PVDM_FAKE_VERSION="12080")
        assert re.search(r"compiled by CUDA 13\.\d+; the driver is of CUDA 12\.8", told), told


def test_both_targets():
    """One executable, on the processor and on the emulator of GPUs, every access checked."""
    if not os.path.exists(EMULATOR):
        raise Skip("the emulator was not built")
    folder = scratch("both_targets")
    run(PVDMC, small_model(folder), "-o", f"{folder}/exe", "--target", "cpu,simt",
        env={"PVDM_SIMT_RACE": "1"})
    values = [((7 * i) % 23 - 11) / 7 for i in range(96)]
    write_tensors(f"{folder}/in.safetensors",
                  {"x": ("F32", [2, 8, 6], values), "y": ("F32", [2, 8, 1], values[:16])})
    for program in ("gate", "turned"):
        for device in ("cpu", "cuda"):
            run(f"{folder}/exe", "run", program, "--device", device,
                "--in", f"{folder}/in.safetensors",
                "--out", f"{folder}/{device}.safetensors", env={"PVDM_CUDA_DRIVER": EMULATOR})
        check_close(Tensors(f"{folder}/cuda.safetensors").get("z"),
                    Tensors(f"{folder}/cpu.safetensors").get("z"),
                    1e-6, program)


def test_same_plans():
    """A plan for GPUs has the launches of the CPU's, and moves the same bytes: segments of a launch
    may differ in what they normalize and in what they make a table of."""
    told = {}
    for target in ("cpu", "cuda"):
        lines = run(PVDMC, "models/pvdm-tiny.model", "--target", target,
                    "--emit", "plan", "--stats",
                    "-o", "/dev/null").splitlines()
        told[target] = [(line, lines[i + 1]) for i, line in enumerate(lines)
                        if re.match(r"(grad\.)?(denoise|ddim_step|diffusion_loss|extract|decode)"
                                    r"\S* +-O2 ", line)]
    assert len(told["cpu"]) > 10 and any("gemm" in what for _, what in told["cpu"]), told["cpu"]
    for one, other in zip(told["cpu"], told["cuda"], strict=True):
        assert one == other, f"{one}\n{other}"
