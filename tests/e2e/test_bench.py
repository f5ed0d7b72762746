"""The ladder: --unfused-too, run --level, bench as text, JSON and a page; pvdmc bench."""
import json
import os
import re

from common import (EMULATOR, PVDMC, ROOT, Skip, Tensors, check_close, compiled, run, scratch,
                    write_tensors)

SMALL = os.path.join(ROOT, "tests", "models", "small.model")
RUNGS = ["unfused", "+ elementwise", "+ norms", "+ epilogues", "+ attention", "+ placement",
         "+ siblings", "+ tables", "+ winograd", "+ split", "all"]
IMAGE = [2, 3, 8, 8]


def picture(factor):
    return [((i * factor) % 101) / 50 - 1 for i in range(2 * 3 * 8 * 8)]


def ladder():
    return compiled(SMALL, "--unfused-too")


def test_levels_of_one_executable():
    exe, folder = ladder(), scratch("levels")
    inputs, weights = f"{folder}/in.safetensors", f"{folder}/net.safetensors"
    write_tensors(inputs, {"x": ("F32", IMAGE, picture(37)), "target": ("F32", IMAGE, picture(11))})
    run(exe, "weights", "init", "--instance", "net", "-o", weights)
    results = {}
    for level in ("0", "1", "2", None):
        out = f"{folder}/out.safetensors"
        flags = ["--level", level] if level else []
        run(exe, "grad", "distance", "--weights", weights, "--in", inputs, "--out", out, *flags)
        results[level] = {name: Tensors(out).get(name) for name in Tensors(out).names()}
    assert results["2"] == results[None], "level 2 is not what runs by default"
    for level in ("0", "1"):
        for name, value in results["2"].items():
            check_close(results[level][name], value, 1e-4, f"level {level}: {name}")
    told = run(exe, "run", "restore", "--weights", weights, "--in", inputs,
               "--level", "3", status=2)
    assert "--level is 0, 1 or 2" in told, told
    told = run(compiled(SMALL), "run", "restore", "--weights", weights, "--in", inputs,
               "--level", "0", status=1)
    assert "--unfused-too" in told, told


def check_rung(rung, rounds):
    assert rung["launches"] >= 1 and rung["bytes"] > 0 and rung["flops"] > 0, rung
    assert len(rung["rounds"]) == rounds and min(rung["rounds"]) > 0, rung
    assert min(rung["rounds"]) <= rung["seconds"] <= max(rung["rounds"]), rung
    assert rung["predicted_seconds"] > 0 and rung["memory_bytes"] > 0 and rung["speedup"] > 0, rung
    assert sum(rung["families"].values()) > 0, rung
    assert rung["largest_error"] is not None and rung["largest_error"] < 1e-4, rung


def check_program(program, rounds, names):
    rungs = program["rungs"]
    assert [rung["name"] for rung in rungs] == names, rungs
    for rung in rungs:
        check_rung(rung, rounds)
    assert rungs[-1]["launches"] < rungs[0]["launches"], rungs
    assert rungs[-1]["bytes"] < rungs[0]["bytes"], rungs
    assert rungs[0]["speedup"] == 1, rungs[0]
    kernels, graph = program["kernels"], program["graph"]
    launches = sum(k["launches"] for k in kernels)
    assert launches == rungs[-1]["launches"] == len(graph["launches"]), program
    assert all(k["seconds"] >= 0 and k["computes"] and k["kernel"] for k in kernels), kernels
    assert [k["seconds"] for k in kernels] == sorted((k["seconds"] for k in kernels), reverse=True)
    edges = graph["edges"]
    assert len(edges) % 2 == 0, edges
    assert all(edges[i] <= edges[i + 1] for i in range(0, len(edges), 2)), edges


def test_report():
    exe, folder = ladder(), scratch("bench")
    path, page = f"{folder}/report.json", f"{folder}/report.html"
    told = run(exe, "bench", "restore", "grad.distance", "fit", "--rounds", "2",
               "--batch", "3", "--quiet",
               "--json", path, "--html", page)
    with open(path) as file:
        report = json.load(file)
    assert report["schema"] == 1 and report["model"] == "small" and report["dtype"] == "f32", report
    machine = report["machine"]
    assert machine["copy_bytes_per_second"] > 1e8, machine
    assert machine["product_flops_per_second"] > 1e8, machine
    programs = report["programs"]
    assert [(p["name"], p["kind"], p["batch"]) for p in programs] == [
        ("restore", "program", 3), ("grad.distance", "gradient", 3),
        ("train.fit", "training step", 3)], programs
    for program in programs:
        check_program(program, 2, RUNGS)
        assert program["error_against"] == "the unfused rung", program
        assert program["rungs"][0]["largest_error"] == 0, program["rungs"][0]
    convolutions = [k for k in programs[0]["kernels"] if k["family"] == "conv"]
    assert any("conv3x3 + norm_load + bias + add" == k["computes"] and k["line"] == "small.model:10"
               for k in convolutions), convolutions
    for name in RUNGS:
        assert told.count(f"\n{name} ") == 3, told
    assert "conv3x3 + norm_load + bias + add" in told and "small.model:10" in told, told
    with open(page) as file:
        text = file.read()
    inside = re.search(r'<script type="application/json" id="report">(.*?)</script>', text, re.S)
    last = json.loads(inside[1])["programs"][2]
    assert last["name"] == "train.fit", "the page holds another report"
    assert "http" not in text.replace("http://www.w3.org/2000/svg",
                                      ""), "the page needs something else"


def test_report_of_a_gpu():
    """The same command where the executor is the CUDA one: here on the emulator."""
    if not os.path.exists(EMULATOR):
        raise Skip("the emulator is not built")
    exe = compiled(SMALL, "--unfused-too", "--target", "simt")
    path = f"{scratch('bench-gpu')}/report.json"
    run(exe, "bench", "restore", "fit", "--ends", "--rounds", "1", "--quiet", "--json", path,
        env={"PVDM_CUDA_DRIVER": EMULATOR})
    with open(path) as file:
        report = json.load(file)
    assert "emulator" in report["device"], report["device"]
    for program in report["programs"]:
        check_program(program, 1, [RUNGS[0], RUNGS[-1]])
    run(exe, "bench", "restore", "--last", "--rounds", "1", "--quiet", "--json", path,
        env={"PVDM_CUDA_DRIVER": EMULATOR})
    with open(path) as file:
        program = json.load(file)["programs"][0]
    assert [rung["name"] for rung in program["rungs"]] == [RUNGS[-1]], program["rungs"]
    assert program["error_against"] == "itself", program["error_against"]
    told = run(exe, "bench", "restore", "--quiet", "--batch", "100000", status=3,
               env={"PVDM_CUDA_DRIVER": EMULATOR, "PVDM_FAKE_MEMORY": "100000000"})
    assert re.search(r"at batch 100000; .* are free on the GPU; batch \d+ fits", told), told


def test_bench_from_the_model():
    folder = scratch("pvdmc-bench")
    path = f"{folder}/report.json"
    told = run(PVDMC, "bench", SMALL, "-D", "size=16", "restore", "grad.distance", "--ends",
               "--rounds", "1",
               "--json", path, env={"TMPDIR": folder})
    assert "size=16" in open(path).read(), told
    with open(path) as file:
        report = json.load(file)
    for program in report["programs"]:
        check_program(program, 1, [RUNGS[0], RUNGS[-1]])
        assert program["error_against"] == "f64, unfused", program
        assert 0 < program["rungs"][-1]["largest_error"] < 1e-4, program["rungs"][-1]
    assert os.listdir(folder) == ["report.json"], os.listdir(folder)
    told = run(PVDMC, "bench", status=2)
    assert "no model file" in told, told
    told = run(PVDMC, "bench", "--help")
    assert "usage: pvdmc bench" in told, told
    told = run(PVDMC, "bench", f"{folder}/none.model", status=1, env={"TMPDIR": folder})
    assert "cannot read" in told, told
    assert os.listdir(folder) == ["report.json"], os.listdir(folder)


def test_bench_says_what_is_wrong():
    exe, folder = ladder(), scratch("bench-wrong")
    told = run(exe, "bench", "restor", "--quiet", status=1)
    assert "did you mean 'restore'" in told, told
    told = run(exe, "bench", "grad.restore", "--quiet", status=1)
    assert "unknown program 'grad.restore'" in told, told
    run(exe, "bench", "restore", "--rounds", "0", status=2)
    run(exe, "bench", "restore", "--batch", "0", status=2)
    told = run(compiled(SMALL), "bench", "restore", status=1)
    assert "--unfused-too" in told, told
    told = run(exe, "bench", "restore", "--quiet", "--ends", "--rounds", "1",
               "--json", f"{folder}/no/report.json", status=1)
    assert "no/report.json" in told, told
    told = run(exe, "bench", "restore", "--quiet", "--ends", "--rounds", "1",
               "--reference", "/bin/false", status=1)
    assert "'/bin/false' failed" in told, told
    told = run(exe, "bench", "restore", "--quiet", "--rounds", "1",
               "--batch", "100000000000", status=3)
    assert "bench needs" in told or "not enough" in told or "memory" in told, told
    inputs = f"{folder}/in.safetensors"
    write_tensors(inputs, {"x": ("F32", [2, 3, 4, 4], [0.0] * 96)})
    told = run(exe, "bench", "restore", "--quiet", "--in", inputs, status=1)
    assert "[2, 3, 4, 4]" in told, told
