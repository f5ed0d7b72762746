"""Fused or not, the numbers are the same: every program of models/ in every rung of the ladder, and
the golden tensors at -O0, at -O1 and with each rung alone."""
import json
from concurrent.futures import ThreadPoolExecutor

import test_golden
from common import PVDMC, ROOT, run, scratch

# Planes of 4 x 4 and more, so that no norm is over so few numbers that it multiplies rounding.
SMALL = {"resolution": 32, "frames": 4, "channels": 32, "ae_depth": 1, "ae_heads": 2,
         "ae_dim_head": 16, "ae_accumulate": 1, "mixer_depth": 1, "mixer_heads": 2,
         "mixer_hidden": 32, "model_channels": 32, "channel_mult": "[1,2]", "num_res_blocks": 1,
         "num_heads": 2, "ndf": 16}
RUNGS = ["elementwise", "norms", "epilogues", "attention", "placement", "batching", "tables",
         "winograd", "split", "memory"]


def check_programs(model, programs, **more):
    """Outputs to 1e-5 and gradients to 1e-4 of the same in f64 without any fusion, training steps
    (their parameters, after one) of the unfused step: the largest difference over the largest
    element. Weights are drawn, also those that start as 0."""
    path = f"{scratch('ladder')}/report.json"
    defines = [word for name, value in {**SMALL, **more}.items()
               for word in ("-D", f"{name}={value}")]
    run(PVDMC, "bench", f"{ROOT}/models/{model}", *defines, "--rounds", "1", "--batch", "2",
        "--quiet", "--json", path)
    with open(path, encoding="utf-8") as file:
        report = json.load(file)["programs"]
    names = {program["name"] for program in report}
    assert programs <= names, f"{programs - names} were not measured, but {names}"
    worst = {"program": 0.0, "gradient": 0.0, "training step": 0.0}
    for program in report:
        kind, rungs = program["kind"], program["rungs"]
        assert [rung["level"] for rung in rungs if rung["level"] >= 0] == [0, 1, 2], rungs
        against = "the unfused rung" if kind == "training step" else "f64, unfused"
        assert program["error_against"] == against, program["error_against"]
        for rung in rungs:
            error, bound = rung["largest_error"], 1e-5 if kind == "program" else 1e-4
            where = f"{program['name']}, {rung['name']}"
            assert error is not None and error <= bound, f"{where}: {error}"
            worst[kind] = max(worst[kind], error)
    return f"{len(report)} programs, " + ", ".join(f"{k} {v:.1e}" for k, v in worst.items())


PROGRAMS = {"extract", "decode", "reconstruct", "denoise", "denoise_uncond", "ddim_step",
            "ddpm_step", "grad.reconstruction_loss", "grad.diffusion_loss", "train.autoencoder",
            "train.adversarial", "train.diffusion"}


def test_programs_of_pvdm():
    return check_programs("pvdm-tiny.model", PROGRAMS)


def test_programs_of_planes_dit():
    return check_programs("planes-dit.model", PROGRAMS, dit_width=32, dit_depth=2, dit_heads=2)


def test_programs_of_pvdm_concat():
    return check_programs("pvdm-concat.model", PROGRAMS | {"planes_of"})


def golden_at_level(level):
    forward = max(test_golden.unet_forward(level), test_golden.autoencoder(level, encoder=False))
    return (f"{level}: forward {forward:.1e}, {test_golden.unet_gradients('l2', level)}, "
            f"autoencoder {test_golden.autoencoder_gradients(level)}")


def test_golden_tensors_at_levels():
    with ThreadPoolExecutor(2) as pool:
        return "; ".join(pool.map(golden_at_level, ("-O0", "-O1")))


def golden_with_rung(rung):
    test_golden.unet_gradients("l2", "--rungs", rung)
    return test_golden.unet_forward("-D", "loss_type=l2", "--rungs", rung)


def test_golden_tensors_with_each_rung():
    with ThreadPoolExecutor(2) as pool:
        errors = list(pool.map(golden_with_rung, RUNGS))
    return f"{len(errors)} rungs, forward {max(errors):.1e}"
