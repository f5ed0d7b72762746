"""The median that run, grad and train --replay print; first values as a file."""
import re

from common import Tensors, compiled, run, scratch, write_tensors
from test_train import TINY

SHAPE = [1, 4, 48]        # the latent of TINY: planes of 4 x 4, 4 x 4 and 4 x 4


def inputs(folder):
    """One batch for the diffusion loss."""
    wave = [((i * 37) % 101) / 50 - 1 for i in range(SHAPE[1] * SHAPE[2])]
    path = f"{folder}/in.safetensors"
    write_tensors(path, {"x_start": ("F32", SHAPE, wave), "cond": ("F32", SHAPE, wave[::-1]),
                         "noise": ("F32", SHAPE, wave), "t": ("I64", [1], [500])})
    return path


def test_median_and_first_values():
    exe, folder = compiled("pvdm.model", *TINY), scratch("timing")
    file, weights = inputs(folder), f"{folder}/unet.safetensors"
    told = run(exe, "weights", "init", "--instance", "unet", "--seed", 5, "-o", weights)
    assert "tensors of 'unet'" in told, told
    again = f"{folder}/again.safetensors"
    run(exe, "weights", "init", "--instance", "unet", "--seed", 5, "-o", again)
    with open(weights, "rb") as one, open(again, "rb") as two:
        assert one.read() == two.read(), "the same seed, other values"
    run(exe, "weights", "init", "--instance", "unet", "--seed", 6, "-o", again)
    assert any(Tensors(weights).get(n) != Tensors(again).get(n) for n in Tensors(weights).names())
    told = run(exe, "weights", "init", "--instance", "unett", "-o", again, status=1)
    assert "did you mean 'unet'" in told, told
    run(exe, "weights", "init", "--instance", "unet", status=2)
    run(exe, "weights", "init", weights, "--instance", "unet", "-o", again, status=2)
    run(exe, "weights", "ls", status=2)

    # drawn values are the same in every repetition: the result is that of one run
    results = []
    for command in ("run", "grad"):
        for repeat in ((), ("--repeat", 1), ("--repeat", 4)):
            out = f"{folder}/out.safetensors"
            told = run(exe, command, "diffusion_loss", "--weights", weights, "--in", file,
                       "--out", out, *repeat)
            assert len(re.findall(r"^median [0-9.]+ ms$", told, re.M)) == (1 if repeat else 0), told
            results.append(Tensors(out).get("loss"))
    assert results[0][0] > 0 and all(loss == results[0] for loss in results[1:3]), results
    assert results[3] == results[4] == results[5], results
    told = run(exe, "run", "diffusion_loss", "--weights", weights, "--in", file,
               "--repeat", 0, status=2)
    assert "--repeat" in told, told

    told = run(exe, "train", "diffusion", "--weights", weights, "--replay", file, "--steps", 3)
    assert len(re.findall(r"^step \d: loss [0-9.]+$", told, re.M)) == 3, told
    assert len(re.findall(r"^median [0-9.]+ ms$", told, re.M)) == 1, told
    state = f"{folder}/state.safetensors"
    told = run(exe, "train", "diffusion", "--weights", weights, "--replay", file, "--steps", 3,
               "--state", state)
    assert len(Tensors(state).get("loss")) == 3
    assert len(re.findall(r"^median [0-9.]+ ms$", told, re.M)) == 1, told
