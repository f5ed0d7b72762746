"""Attention whose queries and keys are turned as its kernels load them: pairs, halves, parts of a
head."""
import os

from common import PVDMC, ROOT, Tensors, check_close, compiled, run, scratch, write_tensors

TURNS = os.path.join(ROOT, "tests", "models", "turns.model")
IMAGE, STEP, TRIED = [2, 3, 12, 8], 1e-5, (0, 7, 100, 287, 413)


def picture():
    return [((i * 37) % 101) / 50 - 1 for i in range(2 * 3 * 12 * 8)]


def loss_at(exe, folder, weights, values):
    write_tensors(f"{folder}/x.safetensors", {"x": ("F64", IMAGE, values)})
    run(exe, "run", "loss", "--weights", weights, "--in", f"{folder}/x.safetensors",
        "--out", f"{folder}/o.safetensors")
    return Tensors(f"{folder}/o.safetensors").get("loss")[0]


def test_rotary_forms():
    """Each form is fused whole; levels agree in f64, and the gradient of x with finite
    differences."""
    worst = 0.0
    for kind in range(4):
        flags = ("-D", f"kind={kind}", "--dtype", "f64", "--unfused-too")
        exe, folder = compiled(TURNS, *flags), scratch(f"rotary{kind}")
        weights, inputs, out = (f"{folder}/{name}.safetensors" for name in ("net", "in", "out"))
        run(exe, "weights", "init", "--instance", "net", "-o", weights)
        write_tensors(inputs, {"x": ("F64", IMAGE, picture())})
        results = []
        for level in ("0", "1", "2"):
            run(exe, "grad", "loss", "--weights", weights, "--in", inputs, "--out", out,
                "--level", level)
            results.append({name: Tensors(out).get(name) for name in Tensors(out).names()})
            for name, value in results[0].items():
                check_close(results[-1][name], value, 1e-12, f"kind {kind}, level {level}: {name}")
        fused = run(PVDMC, TURNS, "-D", f"kind={kind}", "--emit", "fused",
                    "--rungs", "attention")
        alone = fused.split("\nplan ")[0]
        assert "= attention rotary (" in alone and "swap_pairs" not in alone, alone
        assert "concat" not in alone, alone
        for i in TRIED:
            moved = [picture(), picture()]
            moved[0][i] += STEP
            moved[1][i] -= STEP
            above, below = (loss_at(exe, folder, weights, values) for values in moved)
            difference = abs((above - below) / (2 * STEP) - results[2]["grad.x"][i])
            worst = max(worst, difference)
            assert difference < 1e-8, f"kind {kind}: element {i}: {difference}"
    return f"finite differences within {worst:.0e}"
