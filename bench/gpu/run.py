#!/usr/bin/env python3
"""The steps of bench/gpu.sh on a machine with a GPU; see there.

A step is one process or a few, with a limit of its own. What a step gave is kept in
out/gpu-report/state.json, so the next call goes on behind it; a step that was cut short by the call's
limit is begun anew, one that failed is not tried again (--again WORD does). Correctness comes first:
kernels, then programs on both devices; then timings, then PyTorch.
"""
import argparse
import ctypes
import json
import os
import re
import shutil
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
PACK = os.path.join(ROOT, "out", "gpu")
REPORT = os.environ.get("PVDM_GPU_REPORT") or os.path.join(ROOT, "out", "gpu-report")
DRIVER = os.environ.get("PVDM_CUDA_DRIVER") or "libcuda.so.1"
STEP_LIMIT = 420
OUTPUT, GRADIENT = 1e-5, 1e-4  # bounds of differences between the devices, in the 2-norm
sys.path.insert(0, HERE)
import tensors  # noqa: E402  (beside this file)
from sources import sources_hash  # noqa: E402


class Failed(Exception):
    """A step went wrong; the text says how."""


class Again(Exception):
    """The call's time is up."""


# ---- processes ----

class Clock:
    def __init__(self, limit):
        self.end = time.time() + limit

    def left(self):
        return self.end - time.time()


CLOCK = Clock(540)


def call(*command, env=None, limit=STEP_LIMIT):
    """A command's output; Failed with the end of it when its status is not 0."""
    room = min(limit, CLOCK.left() - 5)
    if room < min(limit, 20):
        raise Again
    try:
        done = subprocess.run(command, cwd=ROOT, text=True, errors="replace", timeout=room, check=False,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**os.environ, **(env or {})})
    except subprocess.TimeoutExpired as late:
        if room < limit:
            raise Again from late
        raise Failed(f"still running after {limit} s: {' '.join(command)}") from late
    if done.returncode != 0:
        raise Failed(f"status {done.returncode}: {' '.join(command)}\n{done.stdout[-1500:]}")
    return done.stdout


def binary(model):
    return os.path.join(PACK, "bin", model)


def work(name):
    return os.path.join(REPORT, "work", name)


# ---- the machine ----

def find_gpu():
    """None, or what is missing."""
    try:
        cuda = ctypes.CDLL(DRIVER)
    except OSError as error:
        return f"no driver of CUDA: {error}"
    count = ctypes.c_int(0)
    if cuda.cuInit(0) != 0 or cuda.cuDeviceGetCount(ctypes.byref(count)) != 0 or count.value == 0:
        return "the driver finds no device"
    return None


def machine():
    told = {"python": sys.version.split()[0], "cores": os.cpu_count()}
    for name, command in (("gpu", ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,clocks.sm",
                                   "--format=csv,noheader"]),
                          ("torch", [sys.executable, "-c", "import torch; print(torch.__version__)"])):
        try:
            told[name] = call(*command, limit=60).strip()
        except (Failed, OSError) as error:
            told[name] = f"not there ({str(error).splitlines()[0]})"
    return told


def ceilings():
    """GB/s of a copy (read + written), TFLOP/s of large products, measured by PyTorch."""
    return json.loads(call(sys.executable, os.path.join(HERE, "peers.py"), "ceilings").splitlines()[-1])


# ---- correctness ----

def kernels(test):
    env = {"PVDM_CASES": DRIVER, "PVDM_ROOT": ROOT, "LD_LIBRARY_PATH": os.path.join(PACK, "lib")}
    text = call(os.path.join(PACK, "cases", test), env=env)
    counts = re.findall(r"^(\d+) passed, (\d+) failed", text, re.M)
    if not counts or counts[-1][1] != "0" or counts[-1][0] == "0":
        raise Failed(text[-1500:])
    return {"cases": int(counts[-1][0])}


def weights(model):
    """Files of all instances, none of whose tensors is zero throughout."""
    files = []
    for instance in info(model)["instances"]:
        path = work(f"{model}-{instance['name']}.safetensors")
        if not os.path.exists(path):
            call(binary(model), "weights", "init", "--instance", instance["name"], "--seed", "3", "-o", path + ".part")
            tensors.fill_zeros(path + ".part")
            os.replace(path + ".part", path)
        files += ["--weights", f"{instance['name']}={path}"]
    return files


def info(model):
    return json.loads(call(binary(model), "info", "--json", limit=60))


def inputs(model, program, batch):
    path = work(f"{model}-{program['name']}-{batch}.in")
    if not os.path.exists(path):
        drawn = tensors.draw(7, program["inputs"], batch)
        if drawn is None:
            return None
        tensors.write(path, drawn)
    return path


def on_both(model, bound, command, options):
    """Runs a command on the CPU and on the GPU; both write a file; how far they are apart."""
    files, seconds = {}, {}
    for device in ("cpu", "cuda"):
        files[device] = work(f"{model}-{device}.out")
        start = time.time()
        call(binary(model), *command, *options, "--device", device, "--seed", "5", "--out", files[device])
        seconds[device] = round(time.time() - start, 2)
    error, name = tensors.apart(files["cpu"], files["cuda"])
    if not error <= bound:
        raise Failed(f"{name} is {error:.2e} apart, bound {bound:.0e}")
    return {"error": error, "bound": bound, "worst": name, "seconds": seconds}


def program(model, name, command):
    found = next(p for p in info(model)["programs"] if p["name"] == name)
    path = inputs(model, found, 2 if model == "tiny" else 1)
    return on_both(model, OUTPUT if command == "run" else GRADIENT, [command, name],
                   [*weights(model), "--in", path])


def replay_file(model, stage, batch):
    """A batch of what a stage's loss reads: the inputs of the gradient of that name, else of all."""
    told = info(model)
    entry = next(s for s in told["stages"] if s["name"] == stage)["minimize"][0]
    names = {each["name"] if isinstance(each, dict) else each for each in told["gradients"]}
    own = {name for name in names if name.startswith(stage)} or names
    read = {each["name"]: each for whole in told["programs"] if whole["name"] in own for each in whole["inputs"]}
    return inputs(model, {"name": stage, "inputs": list(read.values())}, batch), entry["variants"][0]


def replayed(model, stage):
    """Losses of a few training steps on both devices, from the same batches and draws."""
    path, _ = replay_file(model, stage, 2)
    losses = {}
    for device in ("cpu", "cuda"):
        text = call(binary(model), "train", stage, *weights(model), "--replay", path, "--steps", "3",
                    "--device", device, "--seed", "5")
        losses[device] = [float(x) for x in re.findall(r"loss\S*[ =]+([-0-9.e+]+)", text)]
    if not losses["cpu"] or len(losses["cpu"]) != len(losses["cuda"]):
        raise Failed(f"losses are not told: {losses}")
    error = max(abs(a - b) / max(abs(a), 1e-6) for a, b in zip(losses["cpu"], losses["cuda"]))
    if not error <= GRADIENT:
        raise Failed(f"losses differ: {losses}")
    return {"error": error, "losses": losses["cuda"]}


# ---- timings ----

def median(text):
    found = re.search(r"^median ([0-9.]+) ms", text, re.M)
    if not found:
        raise Failed(f"no timing in:\n{text[-800:]}")
    return float(found[1])


def timed(model, name, batch):
    found = next(p for p in info(model)["programs"] if p["name"] == name)
    path, files = inputs(model, found, batch), weights(model)
    text = call(binary(model), "run", name, *files, "--in", path, "--device", "cuda", "--repeat", "21")
    variant = found["variants"][0]
    profile = call(binary(model), "run", name, *files, "--in", path, "--device", "cuda", "--repeat", "3", "--profile")
    return {"milliseconds": median(text), "batch": batch, "launches": variant["launches"],
            "gflop": (variant["flops_fixed"] + variant["flops_sample"] * batch) / 1e9,
            "profile": profile[-6000:]}


def step_timed(model, stage, batch):
    path, variant = replay_file(model, stage, batch)
    text = call(binary(model), "train", stage, *weights(model), "--replay", path, "--steps", "12",
                "--device", "cuda")
    return {"milliseconds": median(text), "batch": batch, "launches": variant["launches"],
            "gflop": (variant["flops_fixed"] + variant["flops_sample"] * batch) / 1e9}


def ladder(model):
    path = work(f"{model}-bench.json")
    text = call(binary(model), "bench", "--device", "cuda", "--ends", "--rounds", "3", "--quiet", "--json", path)
    with open(path, encoding="utf-8") as file:
        return {"text": text[-6000:], "report": json.load(file)}


def peer(model, case, batch, mode):
    return json.loads(call(sys.executable, os.path.join(HERE, "peers.py"), case, "--batch", str(batch),
                           "--mode", mode, "--width", "256" if model == "large" else "32",
                           limit=400).splitlines()[-1])


# ---- the list ----

def all_steps(pack):
    steps = [("machine", machine)]
    steps += [(f"kernels {test}", lambda test=test: kernels(test)) for test in pack["cases"]]
    small = info("tiny")
    for each in small["programs"]:
        steps.append((f"run tiny {each['name']}", lambda n=each["name"]: program("tiny", n, "run")))
    for each in small["gradients"]:
        name = each["name"] if isinstance(each, dict) else each
        steps.append((f"grad tiny {name}", lambda n=name: program("tiny", n, "grad")))
    for each in small["stages"]:
        steps.append((f"train tiny {each['name']}", lambda n=each["name"]: replayed("tiny", n)))
    large = "large" in pack["models"]
    if large:
        steps.append(("run large denoise", lambda: program("large", "denoise", "run")))
    steps.append(("ceilings", ceilings))
    model, batches = ("large", (1, 8, 64)) if large else ("tiny", (1, 8))
    steps += [(f"time {model} denoise batch {b}", lambda b=b: timed(model, "denoise", b)) for b in batches]
    steps += [(f"time {model} step batch {b}", lambda b=b: step_timed(model, "diffusion", b)) for b in (1, batches[-1])]
    steps.append(("time tiny ladder", lambda: ladder("tiny")))
    for mode in ("eager", "bf16", "compile"):
        steps += [(f"peer denoise batch {b} {mode}", lambda b=b, m=mode: peer(model, "denoise", b, m)) for b in batches]
    for mode in ("eager", "bf16", "compile"):
        steps.append((f"peer step batch {batches[-1]} {mode}", lambda m=mode: peer(model, "step", batches[-1], m)))
    return steps


# ---- state and report ----

def load_state():
    try:
        with open(os.path.join(REPORT, "state.json"), encoding="utf-8") as file:
            return json.load(file)
    except FileNotFoundError:
        return {}


def save(name, data):
    path = os.path.join(REPORT, name)
    with open(path + ".part", "w", encoding="utf-8") as file:
        if name.endswith(".json"):
            json.dump(data, file, indent=1)
        else:
            file.write(data)
    os.replace(path + ".part", path)


def summary(name, result):
    data = result.get("data") or {}
    if result["status"] != "good":
        return result["why"].strip().replace("\n", "\n" + " " * 12)
    if "milliseconds" in data:
        rate = f", {data['gflop'] / data['milliseconds']:.2f} TFLOP/s" if data.get("gflop") else ""
        launches = f", {data['launches']} launches" if data.get("launches") else ""
        return f"{data['milliseconds']:.3f} ms{rate}{launches}"
    if "error" in data:
        return f"{data['error']:.1e} apart"
    return ", ".join(f"{k} {v}" for k, v in data.items() if not isinstance(v, (dict, list)) and k != "text")


def shares(state):
    """Lines: our times beside the ceilings and the peers'."""
    top = (state.get("ceilings") or {}).get("data") or {}
    lines = []
    for name, result in state.items():
        data = result.get("data") or {}
        if not name.startswith("time ") or "milliseconds" not in data:
            continue
        line = f"{name[5:]}: {data['milliseconds']:.3f} ms"
        if top.get("f32_tflops") and data.get("gflop"):
            share = 100 * data["gflop"] / data["milliseconds"] / top["f32_tflops"]
            line += f", {share:.0f} % of the f32 product rate"
        words = name.split()
        for mode in ("eager", "bf16", "compile"):
            other = (state.get(f"peer {words[2]} batch {data['batch']} {mode}") or {}).get("data")
            if other:
                times = other["milliseconds"] / data["milliseconds"]
                line += f"; PyTorch {mode} {other['milliseconds']:.3f} ms ({times:.2f} times ours)"
        lines.append(line)
    return lines


def write_report(pack, state, names):
    counts = {s: sum(state[n]["status"] == s for n in names if n in state) for s in ("good", "failed")}
    left = [n for n in names if n not in state]
    lines = [f"commit {pack['commit']}, target {pack['target']}",
             f"{counts['good']} steps good, {counts['failed']} failed, {len(left)} left", ""]
    lines += [f"{state[n]['status']:6} {n:42} {state[n]['seconds']:7.1f} s  {summary(n, state[n])}"
              for n in names if n in state]
    lines += ["", *shares(state), ""] + [f"left: {n}" for n in left]
    save("report.txt", "\n".join(lines) + "\n")
    save("report.json", {"pack": pack, "steps": state, "left": left})
    if os.environ.get("OUT"):  # the folder that comes back from a lent machine
        for name in ("report.txt", "report.json", "state.json"):
            shutil.copy(os.path.join(REPORT, name), os.environ["OUT"])
    return counts, left


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--limit", type=float, default=540, help="seconds of this call (540)")
    parser.add_argument("--only", default="", help="steps whose name has this word")
    parser.add_argument("--again", default=None, help="forget what steps with this word gave")
    args = parser.parse_args()
    missing = find_gpu()
    if missing:
        print(f"gpu: no GPU here: {missing}", file=sys.stderr)
        sys.exit(3)
    if not os.path.exists(os.path.join(PACK, "pack.json")):
        sys.exit("gpu: nothing is packed under out/gpu: sh bench/gpu.sh pack, where everything can be built")
    CLOCK.end = time.time() + args.limit
    os.makedirs(os.path.join(REPORT, "work"), exist_ok=True)
    with open(os.path.join(PACK, "pack.json"), encoding="ascii") as file:
        pack = json.load(file)
    if pack["sources"] != sources_hash(ROOT):
        sys.exit("gpu: the sources of kernels are not those that were packed: sh bench/gpu.sh pack")
    state = load_state()
    steps = all_steps(pack)
    names = [name for name, _ in steps]
    for name in list(state):
        if args.again is not None and args.again in name:
            del state[name]
    for name, body in steps:
        if name in state or args.only not in name:
            continue
        start = time.time()
        try:
            state[name] = {"status": "good", "data": body()}
        except Again:
            break
        except Exception as error:  # any failure is one step's; the next ones go on
            state[name] = {"status": "failed", "why": f"{type(error).__name__}: {error}"}
        state[name]["seconds"] = round(time.time() - start, 1)
        print(f"{state[name]['status']:6} {name}: {summary(name, state[name])[:300]}", flush=True)
        save("state.json", state)
    save("state.json", state)
    counts, left = write_report(pack, state, names)
    print(f"{counts['good']} good, {counts['failed']} failed, {len(left)} left: {REPORT}/report.txt")
    sys.exit(75 if left and not args.only else 1 if counts["failed"] else 0)


main()
