"""bench/gpu.sh where there is no GPU, how it goes on behind a step that failed or was cut short,
and its comparison of tensors. With PVDM_SLOW=1 all steps are rehearsed on the driver of tests."""
import array
import importlib.util
import json
import os
import subprocess
import sys
import time

from common import EMULATOR, PVDMC, ROOT, Skip, run, scratch

sys.path.append(os.path.join(ROOT, "bench", "gpu"))


def test_gpu_script_without_gpu():
    """Says so, with status 3, whatever lies under out/."""
    told = run("sh", "bench/gpu.sh", status=3, env={"PVDM_CUDA_DRIVER": "/nowhere/libcuda.so"})
    assert "no GPU here" in told, told


def test_gpu_script_compares():
    """Tensors that differ, are missing or are no numbers are noticed."""
    import tensors
    folder = scratch("gpu_script")

    def write(name, values, key="y"):
        tensors.write(f"{folder}/{name}", {key: ("F32", [len(values)], array.array("f", values))})
        return f"{folder}/{name}"

    one = write("one", [3.0, 4.0])
    assert tensors.apart(one, write("same", [3.0, 4.0]))[0] == 0
    assert abs(tensors.apart(one, write("other", [3.0, 4.5]))[0] - 0.1) < 1e-6
    assert not tensors.apart(one, write("nan", [3.0, float("nan")]))[0] <= 1
    assert tensors.apart(one, write("missing", [3.0, 4.0], "z"))[0] > 1
    assert abs(tensors.apart_together(one, write("other", [3.0, 4.5]))[0] - 0.1) < 1e-6
    assert not tensors.apart_together(one, write("nan", [3.0, float("nan")]))[0] <= 1
    assert tensors.apart_together(one, write("missing", [3.0, 4.0], "z"))[0] > 1
    drawn = tensors.draw(1, [{"name": "x", "dtype": "f32", "shape": ["b", 3]},
                             {"name": "t", "dtype": "i64", "shape": ["b"]}], 2)
    assert len(drawn["x"][2]) == 6 and len(drawn["t"][2]) == 2
    path = write("zeros", [0.0, 0.0])
    tensors.fill_zeros(path)
    tensors.fill_zeros(one)
    assert all(tensors.read(path)["y"][2]) and list(tensors.read(one)["y"][2]) == [3.0, 4.0]


def load_script(name):
    """bench/gpu/run.py as a module, with an empty report in a folder of its own."""
    spec = importlib.util.spec_from_file_location("gpu_run",
                                                  os.path.join(ROOT, "bench", "gpu", "run.py"))
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.REPORT = scratch(name)
    return script


PACK = {"commit": "none", "rehearsal": True, "arch": "none", "cases": []}


def test_gpu_script_goes_on():
    """A step that fails is told, one that is cut short is begun anew by the next call, none runs
    twice."""
    script, ran = load_script("gpu_steps"), []

    def step(name, result=None, error=None):
        def body():
            ran.append(name)
            if error and ran.count(name) == 1:
                raise error
            return result
        return script.Step("times", name, 1, body)

    steps = [step("one", {"error": 0.0}), step("two", error=script.Failed("no such kernel")),
             step("three", {"milliseconds": 2.0, "gflop": 4.0}, error=script.Again()),
             step("four", {})]
    counts, left = script.run_steps(steps, script.load_state(), "", PACK)
    assert ran == ["one", "two", "three"] and counts == {"good": 1, "failed": 1}
    assert left == ["three", "four"]
    with open(f"{script.REPORT}/report.txt", encoding="utf-8") as file:
        text = file.read()
    assert "no such kernel" in text and "left: three" in text, text
    counts, left = script.run_steps(steps, script.load_state(), "", PACK)
    assert ran == ["one", "two", "three", "three", "four"] and not left, ran
    with open(f"{script.REPORT}/report.json", encoding="utf-8") as file:
        assert json.load(file)["steps"]["three"]["data"]["milliseconds"] == 2.0


def test_gpu_script_keeps_what_is_done():
    """State is written behind each step, so a call that is killed loses one step; a step that does
    not fit into what is left of the call is not begun."""
    script = load_script("gpu_killed")
    script.CLOCK.limit, script.CLOCK.end = 100, time.time() + 30
    seen = {}
    steps = [script.Step("times", "one", 1, lambda: {}),
             script.Step("times", "two", 1, lambda: seen.update(script.load_state())),
             script.Step("times", "long", 45, lambda: 1 / 0)]
    counts, left = script.run_steps(steps, script.load_state(), "", PACK)
    assert "one" in seen and counts == {"good": 2, "failed": 0}, (seen, counts, left)
    assert left == ["long"], (seen, counts, left)


STUB = """#!/bin/sh
[ "$PVDM_CASES_FROM" -le 1 ] && echo "case 1: good"
[ "$PVDM_CASES_FROM" -le 2 ] && {
    echo "case 2: reads nowhere"; echo "FAIL reads nowhere: its launch: illegal"; exit 1; }
[ "$PVDM_CASES_FROM" -le 3 ] && { echo "case 3: crashes"; kill -SEGV $$; }
[ "$PVDM_CASES_FROM" -le 4 ] && { echo "case 4: hangs"; sleep 60; }
echo "case 5: differs"; echo "FAIL differs: another value"
echo "case 6: good"; echo "1 passed, 1 failed"; exit 1
"""


def test_gpu_script_fills_the_call():
    """A step that does not fit into what is left waits, and shorter ones behind it run; where a
    kernel went wrong the sanitizer comes before timings."""
    script, ran = load_script("gpu_fills"), []
    script.CLOCK.limit, script.CLOCK.end = 100, time.time() + 30
    steps = [script.Step("times", name, seconds, lambda name=name: ran.append(name) or {})
             for name, seconds in (("long", 45), ("short", 5))]
    _, left = script.run_steps(steps, {}, "", PACK)
    assert ran == ["short"] and left == ["long"], (ran, left)
    script.info = lambda model: {"programs": [], "gradients": [], "stages": []}
    script.find_sanitizer = lambda: "/bin/false"
    pack = {**PACK, "cases": ["test_a"]}
    whole = [step.phase for step in script.all_steps(pack, {})]
    assert list(dict.fromkeys(whole)) == script.PHASES, whole
    whole = [step.phase
             for step in script.all_steps(pack, {"kernels test_a": {"status": "failed"}})]
    assert list(dict.fromkeys(whole))[:4] == ["kernels", "programs", "sanitizer", "times"], whole

    def missing(_):
        raise script.Failed("status 1: version not found")
    script.info = missing
    assert "executables start" in [step.name for step in script.all_steps(pack, {})]


def test_gpu_script_work_of_a_step():
    """A step on given latents is the gradient of the loss alone, not the stage with its frozen
    encoder."""
    script = load_script("gpu_work")
    told = {"gradients": [{"name": "diffusion_loss", "variants": [{"flops_sample": 7}]}],
            "stages": [{"name": "diffusion", "minimize": [{"variants": [{"flops_sample": 36}]}]},
                       {"name": "autoencoder", "minimize": [{"variants": [{"flops_sample": 81}]}]}]}
    assert script.work_of(told, "diffusion")["flops_sample"] == 7
    assert script.work_of(told, "autoencoder")["flops_sample"] == 81


def test_gpu_script_report():
    """Kernels of a ladder: what is predicted beside what was measured, and the share of the
    roofline."""
    script = load_script("gpu_report")
    rung = {"name": "all", "launches": 2, "seconds": 2e-3, "predicted_seconds": 1e-3,
            "speedup": 1.5,
            "memory_bytes": 1e6, "largest_error": None}
    kernel = {"kernel": "conv_1", "computes": "conv", "line": "a.model:3", "launches": 2,
              "seconds": 2e-3,
              "flops": 4e9, "bytes": 2e6, "predicted_seconds": 5e-4}
    ladder = {"milliseconds": 2.0, "unfused_milliseconds": 3.0,
              "predicted_milliseconds": 1.0, "batch": 1,
              "report": {"device": "a GPU", "programs": [{"rungs": [rung], "kernels": [kernel]}]}}
    state = {"ladder large denoise batch 1": {"status": "good", "seconds": 1, "data": ladder},
             "kernels a": {"status": "failed", "seconds": 1, "why": "Failed: differs",
                           "data": None}}
    text = script.report.text(PACK, state, [*state, "never run"])
    for line in ("failed: kernels a",
                 "1.50 times as fast as unfused, 1.000 predicted, 50 % of its roofline",
                 "2.0000 100.0%     0.5000      25%     2     2.00        1  conv", "not finite",
                 "left: never run"):
        assert line in text, (line, text)


def test_gpu_script_carries_little():
    """What executables ask of the machine that they are taken to is read off them."""
    spec = importlib.util.spec_from_file_location("gpu_pack",
                                                  os.path.join(ROOT, "bench", "gpu", "pack.py"))
    pack = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pack)
    assert pack.versions_of(" 0x09691a75 0x00 05 GLIBC_2.2.5\n 0x069691b4 0x00 03 GLIBC_2.34\n")[
        0] == (2, 34)
    assert pack.versions_of(" 0x0d696914 0x00 03 GLIBC_2.4\n 0x0 0x00 02 GLIBC_ABI_DT_RELR\n")[
        0] == (2, 36)
    path = f"{scratch('gpu_carry')}/net.model"
    with open(path, "w", encoding="ascii") as file:
        file.write("model net = Linear(3, 3)\nprogram f(x: [b, 3]) -> y = net(x)\n")
    run(PVDMC, path, "-o", path[:-6])
    told = run("objdump", "-p", path[:-6])
    assert pack.versions_of(told)[0] <= (2, 35), told


def test_gpu_script_cases_go_on():
    """Behind a case that faults, crashes or hangs the program goes on, and each is told by its
    name."""
    script = load_script("gpu_cases")
    script.PACK, script.CASES_LIMIT = f"{script.REPORT}/pack", 1
    os.makedirs(f"{script.PACK}/cases")
    with open(f"{script.PACK}/cases/stub", "w", encoding="ascii") as file:
        file.write(STUB)
    os.chmod(f"{script.PACK}/cases/stub", 0o755)
    try:
        script.kernels("stub")
        raise AssertionError("nothing was noticed")
    except script.Failed as error:
        text = str(error)
    assert text.startswith("4 of 6 cases") and "differs: another value" in text, text
    for word in ("reads nowhere: its launch", "crashes: status -11", "hangs: still running"):
        assert text.count(word) == 1, text


def test_gpu_script_leaves_what_hangs():
    """A program whose cases hang one after the other is left alone; where it is wgmma's, nothing
    else is run on it."""
    script, seen = load_script("gpu_hangs"), []
    script.PACK, script.CASES_LIMIT = f"{script.REPORT}/pack", 30
    os.makedirs(f"{script.PACK}/cases")
    with open(f"{script.PACK}/cases/test_a_wgmma", "w", encoding="ascii") as file:
        file.write('#!/bin/sh\necho "case $PVDM_CASES_FROM: hangs"\nkill -ALRM $$\n')
    os.chmod(f"{script.PACK}/cases/test_a_wgmma", 0o755)
    steps = [script.Step("kernels", "kernels test_a_wgmma", 1,
                         lambda: script.kernels("test_a_wgmma")),
             script.Step("programs", "run", 1,
                         lambda: seen.append(os.environ.get("PVDM_WGMMA")) or {})]
    state = {}
    try:
        script.run_steps(steps, state, "", PACK)
    finally:
        os.environ.pop("PVDM_WGMMA", None)
    why = state["kernels test_a_wgmma"]["why"]
    assert why.count("still running") == 3 and "behind 3 were not run" in why, why
    assert seen == ["0"] and state["run"]["without_wgmma"], state


def test_gpu_script_keeps_what_peers_gave():
    """What was measured before a case that failed stands in the report, beside our time."""
    script = load_script("gpu_peers")
    done = [{"case": "denoise", "batch": 1, "mode": "bf16", "milliseconds": 3.0}]

    def body():
        raise script.Failed("train:64: OutOfMemoryError", {"cases": done})

    steps = [script.Step("times", "time large-bf16 denoise batch 1", 1,
                         lambda: {"milliseconds": 2.0, "batch": 1}),
             script.Step("peers", "peer bf16", 1, body)]
    counts, _ = script.run_steps(steps, {}, "", PACK)
    with open(f"{script.REPORT}/report.txt", encoding="utf-8") as file:
        text = file.read()
    assert counts == {"good": 1, "failed": 1} and "OutOfMemoryError" in text, text
    done[0].update(batch=2, asked=4)   # what fits: compared by clip
    told = script.report.comparison("time large-bf16 denoise batch 4",
                                    {"milliseconds": 4.0, "batch": 4},
                                    {"peer bf16": {"data": {"cases": done}}})[0]
    assert "3.000 ms at batch 2, the most that fits (1.50 times ours)" in told, told
    assert "PyTorch bf16 denoise 3.000 ms (1.50 times ours)" in text, text


SANITIZER = """#!/bin/sh
echo "8 passed, 0 failed"
case "$2 $5" in
    memcheck*good) echo "========= ERROR SUMMARY: 0 errors";;
    memcheck*) echo "========= Invalid __global__ write"; echo "========= ERROR SUMMARY: 2 errors";;
    racecheck*) echo "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)";;
    *) echo "========= Device not supported"; exit 1;;
esac
"""


def test_gpu_script_sanitizer():
    """What compute-sanitizer finds is told; one that does not run here is no success."""
    script = load_script("gpu_sanitizer")
    stub = f"{script.REPORT}/compute-sanitizer"
    with open(stub, "w", encoding="ascii") as file:
        file.write(SANITIZER)
    os.chmod(stub, 0o755)
    script.find_sanitizer = lambda: stub
    assert script.sanitized("memcheck", "good")["programs"] == 8
    assert script.sanitized("racecheck", "any")["errors"] == 0
    for tool, program, word in (("memcheck", "bad", "Invalid __global__ write"),
                                ("other", "bad", "not supported")):
        try:
            script.sanitized(tool, program)
            raise AssertionError("nothing was noticed")
        except script.Failed as error:
            assert word in str(error), error


def test_gpu_script_reads_peers():
    """Only lines of cases count: compilers print JSON, and what looks like it, between them."""
    script = load_script("gpu_told")
    told = script.told_cases(
        '{"size": 3}\n{broken\nW1123 {"case": 1}\n{"case": "denoise", "batch": 1}\n[1]\n')
    assert told == [{"case": "denoise", "batch": 1}], told
    lacking = {"status": "good", "seconds": 1,
               "data": {"milliseconds": 1.0, "batch": 1, "report": {"programs": []}}}
    text = script.report.text(PACK, {"ladder large denoise batch 1": lacking},
                              ["ladder large denoise batch 1"])
    assert "not shown, IndexError" in text, text


def test_gpu_script_rehearsal():
    """Packs stand-ins, and runs every step on the driver of tests, in calls of a minute; PyTorch
    may be missing."""
    if os.environ.get("PVDM_SLOW") != "1":
        raise Skip("slow: PVDM_SLOW=1")
    report = scratch("gpu_rehearsal")
    where = {"PVDM_GPU_PACK": f"{report}/packed", "PVDM_GPU_REPORT": report}
    told = run("sh", "bench/gpu.sh", "pack", "--rehearse", timeout=3000, env=where)
    assert "MiB  packed" in told, told
    env = {**os.environ, **where, "PVDM_CUDA_DRIVER": EMULATOR, "OMP_NUM_THREADS": "1"}
    for _ in range(40):
        done = subprocess.run(["sh", "bench/gpu.sh", "--limit", "60"], cwd=ROOT, env=env,
                              check=False, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if done.returncode != 75:
            break
    with open(f"{report}/report.json", encoding="utf-8") as file:
        steps = json.load(file)["steps"]
    bad = {name: step["why"] for name, step in steps.items() if step["status"] != "good"
           and not (name.startswith(("peer", "ceilings")) and "No module named" in step["why"])}
    assert done.returncode in (0, 1) and not bad, bad
