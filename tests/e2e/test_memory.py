"""Planned memory: packings near the largest live set, budgets, what is computed anew."""
import functools
import itertools
import os
import re

from common import PVDMC, ROOT, run, scratch, write_tensors

MODELS = ["pvdm.model", "pvdm-concat.model", "pvdm-tiny.model", "planes-dit.model"]
PACKED = re.compile(r"^(\S+) +-O(\d).* packed +([\d.]+)% \+ +([\d.]+)%$", re.M)


def test_packings():
    """Both packings of every plan fill at least 95 % of their arena at its fullest moment."""
    for model in MODELS:
        for level in "012":
            text = run(PVDMC, os.path.join(ROOT, "models", model), f"-O{level}", "--stats",
                       "--stop-after", "plan")
            plans = PACKED.findall(text)
            assert len(plans) > 40, text
            for name, _, fixed, batch in plans:
                assert float(fixed) >= 95 and float(batch) >= 95, (model, level, name, fixed, batch)


DEEP = """
module Block(d) {
    norm = LayerNorm(d)
    up   = Linear(d, 4 * d)
    down = Linear(4 * d, d)
    def forward(x: [b, n, d]) = x + (x |> norm |> up |> gelu |> down)
}
module Stack(d, depth) {
    blocks = [Block(d) for _ in 0..depth]
    def forward(x: [b, n, d]) = CALL(x)
}
model net = Stack(32, 8)
program loss(x: [b, 64, 32]) -> y = mean(net(x) ^ 2)
"""
ARENA = re.compile(r"^grad.loss +-O2.* arena +(\d+) \+ +(\d+) b ", re.M)


def deep_model(folder, name, call):
    path = f"{folder}/{name}.model"
    with open(path, "w", encoding="ascii") as file:
        file.write(DEEP.replace("CALL", call))
    return path


def planned(model, *flags):
    """Bytes of the gradient's arena at batch 2; what the compiler said."""
    text = run(PVDMC, model, "--stats", "--certificate", "--stop-after", "plan", *flags)
    fixed, batch = map(int, ARENA.search(text).groups())
    return fixed + 2 * batch, text


def gradient(folder, name, model, *flags):
    exe, out = f"{folder}/{name}", f"{folder}/{name}.safetensors"
    run(PVDMC, model, "-o", exe, *flags)
    wave = [((i * 37) % 101) / 50 - 1 for i in range(2 * 64 * 32)]
    write_tensors(f"{folder}/x.safetensors", {"x": ("F32", [2, 64, 32], wave)})
    run(exe, "weights", "init", "--instance", "net", "--seed", 1, "-o", f"{folder}/w.safetensors")
    run(exe, "grad", "loss", "--weights", f"net={folder}/w.safetensors", "--in",
        f"x={folder}/x.safetensors:x", "--out", out)
    with open(out, "rb") as file:
        return file.read()


def test_budget():
    """A budget is met, costs operations and no bit; one that cannot be met says what can."""
    folder = scratch("memory")
    model = deep_model(folder, "deep", "blocks")
    plain, text = planned(model)
    assert "parameters" in text and "packed" in text, text
    budget = plain * 2 // 5
    less, text = planned(model, "--memory", f"{budget}@2")
    assert less <= budget and "computed anew" in text, (plain, less, text)
    assert gradient(folder, "a", model) == gradient(folder, "b", model, f"--memory={budget}@2")
    told = run(PVDMC, model, "--memory", "10kB@2", "--stop-after", "plan", status=1)
    least = re.search(r"grad.loss take at least ([\d.]+) (\w+) at batch 2; the budget is 10.0 kB",
                      told)
    assert least, told
    enough = f"{float(least[1]) * 1.01}{least[2]}@2"
    run(PVDMC, model, "--memory", enough, "--stop-after", "plan")
    for wrong in ("3", "3XB", "GB", "3GB@0", "3GB@x"):
        run(PVDMC, model, "--memory", wrong, "--stop-after", "plan",
            status=1 if wrong == "3" else 2)
    return f"{plain} bytes, {less} with {budget}"


def test_recompute_is_heard():
    folder = scratch("recompute")
    model = deep_model(folder, "deep", "blocks")
    wished = deep_model(folder, "wished", "recompute(blocks)")
    plain, least = planned(model)[0], planned(wished)[0]
    assert least < plain * 2 // 3, (plain, least)
    assert gradient(folder, "a", model) == gradient(folder, "b", wished)
    return f"{plain} bytes, {least} with recompute(...)"


@functools.lru_cache
def stats_of_pvdm(*flags):
    return run(PVDMC, os.path.join(ROOT, "models", "pvdm.model"), "--stats",
               "--stop-after", "plan", *flags)


MIXED = ("--dtype", "bf16", "--target", "cuda")


def test_autoencoder_at_256():
    """Activations of a training step of the autoencoder, batch 1."""
    told = []
    for flags, most in (((), 12e9), (("--memory", "3GB"), 3e9), (MIXED, 6e9),
                        ((*MIXED, "--memory", "3GB"), 3e9)):
        steps = re.findall(r"^autoencoder.0 .* arena +(\d+) \+ +(\d+) b ",
                           stats_of_pvdm(*flags), re.M)
        assert steps, (flags, steps)
        assert all(int(fixed) + int(batch) <= most for fixed, batch in steps), (flags, steps)
        told.append(f"{max(int(fixed) + int(batch) for fixed, batch in steps) / 1e9:.2f} GB")
    return ", ".join(told)


def test_transposes():
    """In mixed precision too, layouts are such that hardly anything is turned."""
    plans, told = re.findall(r"^(\S+) +-O2 .*\n(.*)", stats_of_pvdm(*MIXED), re.M), []
    for name, most in (("extract", 2), ("decode", 1), ("denoise", 1),
                       ("grad.reconstruction_loss", 4), ("grad.diffusion_loss", 1)):
        counts = [int(count) for plan, line in plans if plan == name
                  for count in re.findall(r"(\d+) transpose", line) or [0]]
        assert counts and max(counts) <= most, (name, counts)
        told.append(f"{name} {max(counts)}")
    return ", ".join(told)


def test_launches():
    """Fused and batched, a step of the model has a fraction of the launches that its text has
    operations."""
    told = []
    exact = {"denoise": 8, "ddim_step": 8, "grad.diffusion_loss": 5, "extract": 5, "decode": 4,
             "grad.reconstruction_loss": 3}
    mixed = {"denoise": 8.6, "ddim_step": 9.1, "grad.diffusion_loss": 5.9, "extract": 5,
             "decode": 4.3, "grad.reconstruction_loss": 3}
    for flags, bounds in (((), exact), (MIXED, mixed)):
        plans = re.findall(r"^(\S+) +-O(\d) .* (\d+) launches", stats_of_pvdm(*flags), re.M)
        for name, times in bounds.items():
            counts = {level: [int(count) for plan, at, count in plans
                              if plan == name and at == level and int(count) > 20]
                      for level in "02"}
            plain, fused = min(counts["0"]), min(counts["2"])
            assert fused * times <= plain, (flags, name, plain, fused)
            told.append(f"{name}{' in bf16' if flags else ''} {plain} -> {fused}")
    return ", ".join(told)


def test_bytes():
    """A sampling step and the autoencoder move a third of the bytes."""
    for flags, name in itertools.product(((), ("--target", "cuda"), MIXED),
                                         ("extract", "decode", "ddim_step")):
        plans = re.findall(rf"^{name} +-O(\d) .* (\d+) launches.*\n"
                           r".*moves ([\d.]+) \+ ([\d.]+) b MB", stats_of_pvdm(*flags), re.M)
        plain, fused = (min((float(fixed) + float(batch), float(fixed), float(batch))
                            for level, count, fixed, batch in plans
                            if level == at and int(count) > 20) for at in "02")
        assert 3 * fused[0] <= plain[0] and 3 * fused[2] <= plain[2], (plain, fused)
    return f"{fused[1]:.0f} + {fused[2]:.0f} b of {plain[1]:.0f} + {plain[2]:.0f} b MB"
