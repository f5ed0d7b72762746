"""The commands that README.md shows, run as they stand there on a small model and a small data set.

Every line of its code blocks is run in order, in one folder, after the replacements of SMALL, or is
listed in ELSEWHERE. The YAML block is the configuration, the model block is compiled.
"""
import array
import math
import os
import re
import shutil
import sys

from common import PVDMC, ROOT, Tensors, run, scratch, write_tensors
from test_train import TINY, png

sys.path.insert(0, os.path.join(ROOT, "tests"))

# What other tests, or the build that made this compiler, have done.
ELSEWHERE = ("sh build/demo.sh", "sh build/test.sh", "sh build/setup.sh && cmake")

OPTIONS = " ".join(f"'{word}'" for word in TINY)

# In the order of the table; a pattern that no line of README.md has is an error.
SMALL = [
    (r"out/release/pvdmc models/pvdm\.model", f"{PVDMC} {ROOT}/models/pvdm.model"),
    (r"out/release/pvdmc bench models/pvdm\.model",
     f"{PVDMC} bench {ROOT}/models/pvdm.model --ends --rounds 1 {OPTIONS}"),
    (r"-o pvdm$", f"-o pvdm {OPTIONS}"),
    (r"-o pvdm-levels$", f"-o pvdm-levels {OPTIONS}"),
    (r"(?=--explain|--emit html)", f"{OPTIONS} "),
    (r"--rounds 9", "--rounds 1 --ends"),
    (r"step-00250000", "step-00000002"),
    (r"vgg16\.pth", "vgg16.safetensors"),
    (r"=vgg\.pth", "=vgg.safetensors"),
    (r"ae=\.\.\. --resume", "ae=runs/ae/step-00000002.safetensors --resume --steps 3"),
    (r"sample \.\.\.", "sample --weights ae=AE --weights unet=UNET --steps 2"),
    (r"=AE\b", "=runs/ae/step-00000002.safetensors"),
    (r"=UNET\b", "=runs/unet/step-00000003.safetensors"),
    (r"--steps 100,20", "--steps 2,1"),
    (r"--steps 100\b", "--steps 2"),
    (r"--frames 128", "--frames 8"),
    (r"--batch 4", "--batch 2"),
    (r"model_last\.pth -o", "model_last.pth --steps 2 -o"),
]
YAML = [("batch: 8", "batch: 2"), ("steps: 250000", "steps: 2")]


def blocks(kind):
    with open(os.path.join(ROOT, "README.md"), encoding="utf-8") as file:
        found = re.findall(r"^```(\w*)\n(.*?)^```$", file.read(), re.M | re.S)
    return [text for language, text in found if language == kind]


def commands():
    """Lines of the blocks without a language: no comments, continued lines joined."""
    lines = "".join(blocks("")).replace("\\\n", " ").splitlines()
    lines = [re.sub(r"\s+#.*", "", line).rstrip() for line in lines]
    return [line for line in lines if line]


def small(lines):
    for pattern, text in SMALL:
        done = [re.sub(pattern, lambda _, text=text: text, line) for line in lines]
        assert done != lines, f"README.md no longer has '{pattern}'"
        lines = done
    return lines


def ucf101(folder, frames=10):
    """UCF-101's layout: classes, videos (here folders of frames), lists of a split."""
    os.makedirs(f"{folder}/ucfTrainTestlist")
    names = [f"{kind}/v_{kind}_g0{i}_c01.avi" for kind in ("Archery", "Bowling") for i in (1, 2)]
    for i, name in enumerate(names):
        os.makedirs(f"{folder}/{name}")
        for k in range(frames):
            png(f"{folder}/{name}/{k:04}.png", 32, 32,
                lambda x, y, k=k, i=i: (8 * x % 256, 8 * y % 256, 20 * k + i))
    for split, part in (("train", names[::2]), ("test", names[1::2])):
        with open(f"{folder}/ucfTrainTestlist/{split}list01.txt", "w", encoding="ascii") as file:
            file.writelines(f"{name} {i + 1}\n" for i, name in enumerate(part))


def perceptual(folder):
    """VGG16 under torchvision's names, LPIPS's layers under its own: one number everywhere."""
    def constant(shape):
        return "F32", shape, array.array("f", [0.02]) * math.prod(shape)
    widths = [3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    slots = [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]
    vgg = {"classifier.6.bias": constant([10])}
    for slot, before, after in zip(slots, widths, widths[1:]):
        vgg[f"features.{slot}.weight"] = constant([after, before, 3, 3])
        vgg[f"features.{slot}.bias"] = constant([after])
    write_tensors(f"{folder}/vgg16.safetensors", vgg)
    write_tensors(f"{folder}/vgg.safetensors",
                  {f"lin{i}.model.1.weight": constant([1, width, 1, 1])
                   for i, width in enumerate((64, 128, 256, 512, 512))})


def published(folder):
    """Files as the official code leaves them, of what was trained before."""
    import make_torch_file as torch_file
    for name, instance, prefix in (("ema_model_ucf.pth", "unet", "ema.unet."),
                                   ("model_last.pth", "ae", "ae.")):
        step = {"unet": 3, "ae": 2}[instance]
        tensors = Tensors(f"{folder}/runs/{instance}/step-{step:08}.safetensors")
        state = {}
        for i, path in enumerate(tensors.names(prefix)):
            storage = torch_file.Storage("Float", str(i), tensors.get(path))
            state[path[len(prefix):]] = torch_file.Tensor(storage, tensors.shape(path))
        torch_file.write(f"{folder}/{name}", state)


def inputs(folder):
    """Of `run denoise`: latents of the small model, a time step a sample; of `grad`: a video."""
    n = (32 // 8) ** 2 + 2 * 4 * (32 // 8)
    values = [(i % 7 - 3) / 3 for i in range(2 * 4 * n)]
    write_tensors(f"{folder}/in.safetensors",
                  {"x": ("F32", [2, 4, n], values), "cond": ("F32", [2, 4, n], values),
                   "t": ("I64", [2], [3, 900])})
    pixels = [(i % 11 - 5) / 5 for i in range(3 * 4 * 32 * 32)]
    write_tensors(f"{folder}/x.safetensors", {"x": ("F32", [1, 3, 4, 32, 32], pixels)})


def before(line, folder):
    """What a command finds there that README.md's reader has."""
    if " in.mp4" in line:
        shutil.copy(f"{folder}/clip.mp4", f"{folder}/in.mp4")
    if "ema_model_ucf.pth" in line and not os.path.exists(f"{folder}/ema_model_ucf.pth"):
        published(folder)


def check_made(line, folder):
    for name in re.findall(r"(?:-o|--out) (\S+)", line):
        assert os.path.exists(os.path.join(folder, name)), f"{line}: {name} was not made"


def test_readme_commands():
    folder = scratch("readme")
    ucf101(f"{folder}/UCF-101")
    inputs(folder)
    perceptual(folder)
    config = blocks("yaml")[0]
    for large, little in YAML:
        assert large in config, f"README.md's configuration no longer has '{large}'"
        config = config.replace(large, little)
    for name in ("ae.yaml", "unet.yaml"):
        if name == "unet.yaml":
            config = re.sub(r"^perceptual_weight.*\n", "", config, flags=re.M)
        with open(f"{folder}/{name}", "w", encoding="utf-8") as file:
            file.write(config)
    count = 0
    for line in small(commands()):
        if line.startswith(ELSEWHERE):
            continue
        before(line, folder)
        run("sh", "-c", line, cwd=folder)
        check_made(line, folder)
        count += 1
    for stage in ("ae", "unet"):
        assert os.path.getsize(f"{folder}/runs/{stage}/loss.png") > 1000
    assert count >= 15, f"only {count} commands"
    return f"{count} commands"


def test_readme_model():
    folder = scratch("readme_model")
    for i, text in enumerate(blocks("model")):
        with open(f"{folder}/variant{i}.model", "w", encoding="utf-8") as file:
            file.write(text)
        run(PVDMC, f"{folder}/variant{i}.model", "-I", f"{ROOT}/models", "--check")
