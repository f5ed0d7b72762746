"""LPIPS, the discriminators and the generator's losses against the golden file `lpips_disc`."""
import array
import json
import math
import os
import re
import struct
import subprocess

from common import OUT, ROOT, Tensors, check_close, compiled, run, scratch, write_tensors
from test_golden import check_statistics, golden

MODEL = os.path.join(ROOT, "tests", "models", "losses-check.model")
FLAGS = ["-I", os.path.join(ROOT, "models"), "-D", "resolution=64", "-D", "ndf=16",
         "-D", "channels=32", "-D", "ae_depth=1", "-D", "model_channels=32",
         "-D", "channel_mult=[1]", "-D", "num_res_blocks=1"]
WIDTHS = [(3, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 256), (256, 512),
          (512, 512), (512, 512), (512, 512), (512, 512), (512, 512)]
SLOTS = [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]      # of torchvision's `features`


def vgg_weights(file):
    """VGG16 of formula weights with LPIPS's linear layers, as a safetensors file; made once."""
    path = os.path.join(OUT, "vgg_hash.safetensors")
    if os.path.exists(path):
        return path
    tool = os.path.join(OUT, "hash_weights")
    os.makedirs(OUT, exist_ok=True)
    run("cc", "-O2", "-o", tool, os.path.join(ROOT, "tests", "tools", "hash_weights.c"))

    def values(key, count, scale):
        return subprocess.run([tool, str(key), str(count), repr(scale), "0"], check=True,
                              stdout=subprocess.PIPE).stdout

    want, header, blobs, at = Tensors(file), {}, [], 0

    def add(name, shape, raw):
        nonlocal at
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + len(raw)]}
        blobs.append(raw)
        at += len(raw)

    for layer, ((c_in, c_out), slot) in enumerate(zip(WIDTHS, SLOTS)):
        raw = values(700000 + layer, c_out * c_in * 9, math.sqrt(6 / (9 * c_in)))
        ends = array.array("f", raw[:16] + raw[-16:])
        check_close(ends, want.get(f"lpips_hash.conv{layer}.wcheck"), 1e-6,
                    f"formula of layer {layer}")
        add(f"net.features.{slot}.weight", [c_out, c_in, 3, 3], raw)
        add(f"net.features.{slot}.bias", [c_out], values(700050 + layer, c_out, 0.1))
    for k in range(5):
        name = f"lpips_hash.lin{k}.weight"
        add(f"lin{k}.model.1.weight", want.shape(name), want.get(name).tobytes())
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path + ".part", "wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        out.writelines(blobs)
    os.rename(path + ".part", path)
    return path


def prepare(folder):
    """inputs.safetensors: x, y videos; the pictures of the chosen frames; k."""
    file = golden("lpips_disc.safetensors")
    want = Tensors(file)
    frames, shape = want.get("frame_idx"), want.shape("inputs")
    b, c, t = shape[:3]
    plane = shape[3] * shape[4]

    def picture(video):
        out = array.array("f")
        for i in range(b):
            for j in range(c):
                at = ((i * c + j) * t + frames[i]) * plane
                out += video[at:at + plane]
        return out

    x, y = want.get("inputs"), want.get("recon")
    small = [b, c, *shape[3:]]
    path = f"{folder}/inputs.safetensors"
    write_tensors(path, {"x": ("F32", shape, x), "y": ("F32", shape, y), "k": ("I64", [b], frames),
                         "px": ("F32", small, picture(x)), "py": ("F32", small, picture(y))})
    return file, want, path


def weights(file):
    return ["--weights", f"lpips={vgg_weights(file)}",
            "--weights", f"discriminator_2d={file}#weights.disc2d.",
            "--weights", f"discriminator_3d={file}#weights.disc3d."]


def test_lpips():
    """The gradient by x is checked at -O1: one of the values that x makes is at a kink of relu or
    of a maximum. In f64 that gradient is 6e-4 away from the official one, in f32 as far or not, by
    the order of sums."""
    exe, plain, folder = compiled(MODEL, *FLAGS), compiled(MODEL, *FLAGS, "-O1"), scratch("lpips")
    file, want, path = prepare(folder)
    out, told = f"{folder}/o.safetensors", []
    pictures = ["--in", f"x={path}:px", "--in", f"y={path}:py"]
    run(exe, "run", "perceptual", *weights(file), *pictures, "--out", out)
    told.append(check_close(Tensors(out).get("value"), want.get("lpips_hash.value"), 1e-5, "value"))
    run(exe, "run", "features", *weights(file), *pictures[:2], "--out", out)
    for i in range(5):
        check_statistics(Tensors(out).get(f"f{i}"), want.get(f"lpips_hash.feat{i}_stat"), 1e-5,
                         f"feature {i}")
    for program, mine, name in ((plain, "grad.x", "grad_input0_of_mean"),
                                (exe, "grad.y", "grad_input1_of_mean")):
        run(program, "grad", "perceptual_mean", *weights(file), *pictures, "--out", out)
        told.append(check_close(Tensors(out).get(mine), want.get("lpips_hash." + name), 1e-4, name))
    return f"worst {max(told):.1e}"


def test_discriminators():
    """Outputs in training mode, statistics after both forwards, hinge losses and their
    gradients."""
    exe, folder = compiled(MODEL, *FLAGS), scratch("disc")
    file, want, path = prepare(folder)
    out, worst = f"{folder}/o.safetensors", 0.0
    for d, real, fake in (("2d", "px", "py"), ("3d", "x", "y")):
        both = ["--in", f"real={path}:{real}", "--in", f"fake={path}:{fake}"]
        run(exe, "run", f"judge_{d}", *weights(file), *both, "--out", out)
        have = Tensors(out)
        for side in ("real", "fake"):
            worst = max(worst, check_close(have.get(side[0] + "4"),
                                           want.get(f"disc{d}.logits_{side}"), 1e-5, side))
            for i in range(4):
                check_statistics(have.get(f"{side[0]}{i}"),
                                 want.get(f"disc{d}.feat_{side}.{i}.stat"), 1e-5, side)
        prefix = f"disc{d}.after_real_fake."
        for name in want.names(prefix):
            if name.endswith("num_batches_tracked"):
                count = have.get(f"discriminator_{d}." + name[len(prefix):])
                assert list(count) == list(want.get(name))
                continue
            worst = max(worst, check_close(have.get(f"discriminator_{d}." + name[len(prefix):]),
                                           want.get(name), 1e-5, name))
        run(exe, "grad", f"confusion_{d}", *weights(file), *both, "--out", out)
        have = Tensors(out)
        check_close(have.get("loss"), want.get(f"D.hinge_disc{d}"), 1e-5, "hinge")
        for name in want.names(f"D.gradstat.disc{d}."):
            path_of = name.split(f"disc{d}.", 1)[1]
            if re.fullmatch(r"model[123]\.0\..*bias", path_of):
                continue  # feeds a batch norm: the true gradient is zero
            check_statistics(have.get(f"grad.discriminator_{d}.{path_of}"),
                             want.get(name), 1e-4, name)
    return f"worst {worst:.1e}"


def test_generator_losses():
    exe, folder = compiled(MODEL, *FLAGS), scratch("generator")
    file, want, path = prepare(folder)
    out = f"{folder}/o.safetensors"
    parts = {"rec": "part_pixels", "p": "part_perceptual", "g": "part_gan", "feat": "part_features"}
    for name, program in parts.items():
        run(exe, "grad", program, *weights(file), "--in", path, "--out", out)
        have = Tensors(out)
        check_close(have.get("loss"), want.get(f"G.loss_{name}"), 1e-5, name)
        check_statistics(have.get("grad.y"), want.get(f"G.gradstat_recon_{name}"), 1e-4, name)
    run(exe, "grad", "part_all", *weights(file), "--in", path, "--out", out)
    have = Tensors(out)
    check_close(have.get("loss"), want.get("G.loss_total"), 1e-5, "total")
    if "G.grad_recon_total" in want:
        error = check_close(have.get("grad.y"), want.get("G.grad_recon_total"), 1e-4, "gradient")
        return f"{error:.1e}"
    return ""
