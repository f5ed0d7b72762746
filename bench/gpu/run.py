#!/usr/bin/env python3
"""The steps of bench/gpu.sh on a machine with a GPU; see there.

A step is one process or a few, with a limit of its own. What a step gave is kept in
out/gpu-report/state.json, so the next call goes on behind it; a step that was cut short by the call's
limit is begun anew, one that failed is not tried again (--again WORD does). Phases: kernels, programs
(on both devices), times, peers (PyTorch). A step is not begun when less time is left than it is
expected to take; --plan prints what that is.
"""
import argparse
import ctypes
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
from collections import namedtuple

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
PACKED = os.path.join(ROOT, "out", "gpu")
REPORT = os.environ.get("PVDM_GPU_REPORT") or os.path.join(ROOT, "out", "gpu-report")
DRIVER = os.environ.get("PVDM_CUDA_DRIVER") or "libcuda.so.1"
PACK = os.path.join(REPORT, "pack")
STEP_LIMIT = 420
OUTPUT, GRADIENT = 1e-5, 1e-4  # bounds of differences between the devices, in the 2-norm
BF16_OUTPUT, BF16_GRADIENT = 5e-2, 1e-1
OFTEN = {"repeat": "21", "profile": "3", "steps": "12", "rounds": ["--rounds", "3"]}
ONCE = {"repeat": "1", "profile": "1", "steps": "2", "rounds": ["--rounds", "1", "--ends"]}    # in a rehearsal
Step = namedtuple("Step", "phase name seconds body")  # seconds: what it is expected to take
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
        self.limit = limit
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


def on_both(pairs, bound, command, options, apart=tensors.apart):
    """Runs a command on both devices, ((device, model), ...); both write a file; how far they are apart."""
    files, seconds = [], {}
    for device, model in pairs:
        files.append(work(f"{model}-{device}.out"))
        start = time.time()
        call(binary(model), *command, *options, "--device", device, "--seed", "5", "--out", files[-1])
        seconds[device] = round(time.time() - start, 2)
    error, name = apart(*files)
    if not error <= bound:
        raise Failed(f"{name} is {error:.2e} apart, bound {bound:.0e}")
    return {"error": error, "bound": bound, "worst": name, "seconds": seconds}


def plain(model):
    """The model in f32, which has kernels for the CPU too."""
    return model.removesuffix("-bf16")


def program(model, name, command):
    base = plain(model)
    found = next(p for p in info(base)["programs"] if p["name"] == name)
    path = inputs(base, found, 2 if base == "tiny" else 1)
    bounds = {"run": BF16_OUTPUT, "grad": BF16_GRADIENT} if model != base else {"run": OUTPUT, "grad": GRADIENT}
    mixed = model != base and command == "grad"
    return on_both((("cpu", base), ("cuda", model)), bounds[command], [command, name],
                   [*weights(base), "--in", path], tensors.apart_together if mixed else tensors.apart)


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
    """A program's median time, as a graph, with all weights and inputs on the device."""
    found = next(p for p in info(plain(model))["programs"] if p["name"] == name)
    command = [binary(model), "run", name, *weights(plain(model)), "--in", inputs(plain(model), found, batch),
               "--device", "cuda", "--seed", "5"]
    variant = found["variants"][0]
    return {"milliseconds": median(call(*command, "--repeat", OFTEN["repeat"])), "batch": batch, "launches": variant["launches"],
            "gflop": (variant["flops_fixed"] + variant["flops_sample"] * batch) / 1e9,
            "profile": call(*command, "--repeat", OFTEN["profile"], "--profile")[-6000:]}


def step_timed(model, stage, batch):
    """A training step without what makes its inputs (the frozen encoder): loss, gradients, optimizer."""
    path, variant = replay_file(plain(model), stage, batch)
    text = call(binary(model), "train", stage, *weights(plain(model)), "--replay", path, "--steps",
                OFTEN["steps"], "--device", "cuda")
    return {"milliseconds": median(text), "batch": batch, "launches": variant["launches"],
            "gflop": (variant["flops_fixed"] + variant["flops_sample"] * batch) / 1e9}


def ladder(model, name, batch, *options):
    """First rung and last; of each kernel its time, bytes, FLOPs and share of the roofline."""
    path = work(f"{model}-{name}-{batch}-bench.json")
    text = call(binary(model), "bench", name, "--batch", str(batch), "--device", "cuda", *OFTEN["rounds"], "--quiet",
                "--json", path, *weights(plain(model)), *options)
    with open(path, encoding="utf-8") as file:
        report = json.load(file)
    rungs = report["programs"][0]["rungs"]
    for whole in report["programs"]:
        whole.pop("graph", None)  # large, and of use only to the page
    last = rungs[-1]
    return {"milliseconds": 1000 * last["seconds"], "batch": batch, "launches": last["launches"],
            "gflop": last["flops"] / 1e9, "unfused_milliseconds": 1000 * rungs[0]["seconds"],
            "predicted_milliseconds": 1000 * last["predicted_seconds"], "memory_bytes": last["memory_bytes"],
            "text": text[-6000:], "report": report}


def peer(case, batch, mode, width):
    return json.loads(call(sys.executable, os.path.join(HERE, "peers.py"), case, "--batch", str(batch), "--mode", mode,
                           "--width", str(width), limit=480).splitlines()[-1])


# ---- the list ----

def correctness(pack):
    steps = [Step("kernels", "machine", 15, machine)]
    steps += [Step("kernels", f"kernels {t}", 15, lambda t=t: kernels(t)) for t in pack["cases"]]
    small = info("tiny")
    for model in ("tiny", "tiny-bf16"):
        for each in small["programs"]:
            steps.append(Step("programs", f"run {model} {each['name']}", 4,
                              lambda m=model, n=each["name"]: program(m, n, "run")))
        for each in small["gradients"]:
            name = each["name"] if isinstance(each, dict) else each
            steps.append(Step("programs", f"grad {model} {name}", 6, lambda m=model, n=name: program(m, n, "grad")))
    for each in small["stages"]:
        steps.append(Step("programs", f"train tiny {each['name']}", 8, lambda n=each["name"]: replayed("tiny", n)))
    for model in ("large", "large-bf16"):
        steps.append(Step("programs", f"run {model} denoise", 60, lambda m=model: program(m, "denoise", "run")))
    return steps


def timings(batches):
    """The step is timed without the frozen encoder ("step") and with it ("train": whether the batch has a
    condition, which is encoded too, is drawn, always alike)."""
    most = batches[-1]
    steps = [Step("times", "ceilings", 25, ceilings)]
    for model in ("large-bf16", "large"):
        scale = 1 if model == "large-bf16" else 2
        steps += [Step("times", f"time {model} denoise batch {b}", 12 + scale * b // 8,
                       lambda m=model, b=b: timed(m, "denoise", b)) for b in batches]
        steps.append(Step("times", f"time {model} step batch {most}", 30 * scale,
                          lambda m=model: step_timed(m, "diffusion", most)))
        steps += [Step("times", f"ladder {model} denoise batch {b}", 25 + scale * b // 2,
                       lambda m=model, b=b: ladder(m, "denoise", b)) for b in batches]
        steps.append(Step("times", f"ladder {model} train batch {most}", 70 * scale,
                          lambda m=model: ladder(m, "train.diffusion", most, "--ends")))
    return steps


def pytorch(batches, width):
    """Compilation last, since it takes longest; max-autotune only of what it fits for."""
    most, steps = batches[-1], []

    def add(case, batch, mode, seconds):
        steps.append(Step("peers", f"peer {case} batch {batch} {mode}", seconds,
                          lambda: peer(case, batch, mode, width)))
    for mode in ("bf16", "eager"):
        for batch in batches:
            add("denoise", batch, mode, 15)
        for case in ("step", "train", "train-cond"):
            add(case, most, mode, 25)
    for batch in batches[:-1]:
        add("denoise", batch, "compile", 60)
    for case in ("step", "train-cond"):
        add(case, most, "compile", 100)
    add("denoise", most, "max-autotune", 200)
    return steps


def all_steps(pack):
    batches, width = ((1, 2), 32) if pack["rehearsal"] else ((1, 8, 64), 256)
    return correctness(pack) + timings(batches) + pytorch(batches, width)


def print_plan(steps, state):
    """What is left to do, by phase, and the calls it takes."""
    whole = 0
    for phase in ("kernels", "programs", "times", "peers"):
        left = [step for step in steps if step.phase == phase and step.name not in state]
        seconds = sum(step.seconds for step in left)
        whole += seconds
        print(f"{phase:9} {len(left):3} steps, about {seconds / 60:4.1f} minutes")
    print(f"all       {whole / 60:4.1f} minutes expected, in calls of at most {CLOCK.limit / 60:.0f}")


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
        if name.split()[0] not in ("time", "ladder") or "milliseconds" not in data:
            continue
        words, kind = name.split(), "bf16" if "-bf16" in name else "f32"
        line = f"{name}: {data['milliseconds']:.3f} ms"
        if data.get("unfused_milliseconds"):
            line += f", {data['unfused_milliseconds'] / data['milliseconds']:.2f} times as fast as unfused"
            line += f", {100 * data['predicted_milliseconds'] / data['milliseconds']:.0f} % of its roofline"
        if top.get(f"{kind}_tflops") and data.get("gflop"):
            share = 100 * data["gflop"] / data["milliseconds"] / top[f"{kind}_tflops"]
            line += f", {share:.0f} % of the {kind} product rate"
        for mode in ("eager", "bf16", "max-autotune", "compile"):
            other = (state.get(f"peer {words[2]} batch {data['batch']} {mode}") or {}).get("data")
            if other:
                times = other["milliseconds"] / data["milliseconds"]
                line += f"; PyTorch {mode} {other['milliseconds']:.3f} ms ({times:.2f} times ours)"
        lines.append(line)
    return lines


def write_report(pack, state, names):
    counts = {s: sum(state[n]["status"] == s for n in names if n in state) for s in ("good", "failed")}
    left = [n for n in names if n not in state]
    lines = [f"commit {pack['commit']}, {'a rehearsal' if pack['rehearsal'] else pack['arch']}",
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


def unpack():
    """The packed executables under REPORT/pack, anew if the pack is another one."""
    stamp = os.path.join(PACK, "pack.json")
    with open(os.path.join(PACKED, "pack.json"), encoding="ascii") as file:
        text = file.read()
    if os.path.exists(stamp):
        with open(stamp, encoding="ascii") as file:
            if file.read() == text:
                return json.loads(text)
    shutil.rmtree(PACK, ignore_errors=True)
    with tarfile.open(os.path.join(PACKED, "pack.tar.xz")) as archive:
        archive.extractall(PACK)
    with open(stamp, "w", encoding="ascii") as file:
        file.write(text)
    return json.loads(text)


def run_steps(steps, state, only, pack):
    """Runs what is not done yet, until the time is up. State and report are written behind each step."""
    names = [step.name for step in steps]
    for step in steps:
        if step.name in state or only not in f"{step.phase} {step.name}":
            continue
        if CLOCK.left() < min(step.seconds, CLOCK.limit / 2):
            break
        start = time.time()
        try:
            state[step.name] = {"status": "good", "data": step.body()}
        except Again:
            break
        except Exception as error:  # any failure is one step's; the next ones go on
            state[step.name] = {"status": "failed", "why": f"{type(error).__name__}: {error}"}
        state[step.name]["seconds"] = round(time.time() - start, 1)
        print(f"{state[step.name]['status']:6} {step.name} ({state[step.name]['seconds']} s): "
              f"{summary(step.name, state[step.name])[:300]}", flush=True)
        save("state.json", state)
        write_report(pack, state, names)
    save("state.json", state)
    return write_report(pack, state, names)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--limit", type=float, default=540, help="seconds of this call (540)")
    parser.add_argument("--only", default="", help="steps whose phase or name has this word")
    parser.add_argument("--again", default=None, help="forget what steps with this word gave")
    parser.add_argument("--plan", action="store_true", help="prints what is left, and how long it may take")
    args = parser.parse_args()
    missing = find_gpu()
    if missing and not args.plan:
        print(f"gpu: no GPU here: {missing}", file=sys.stderr)
        sys.exit(3)
    if not os.path.exists(os.path.join(PACKED, "pack.json")):
        sys.exit("gpu: nothing is packed under out/gpu: sh bench/gpu.sh pack, where everything can be built")
    CLOCK.limit, CLOCK.end = args.limit, time.time() + args.limit
    os.makedirs(os.path.join(REPORT, "work"), exist_ok=True)
    pack = unpack()
    if pack["sources"] != sources_hash(ROOT):
        sys.exit("gpu: the sources of kernels are not those that were packed: sh bench/gpu.sh pack")
    if pack["rehearsal"]:
        os.environ.setdefault("PVDM_PEER_DEVICE", "cpu")
        OFTEN.update(ONCE)
    state, steps = load_state(), all_steps(pack)
    for name in list(state):
        if args.again is not None and args.again in name:
            del state[name]
    print_plan(steps, state)
    if args.plan:
        return
    counts, left = run_steps(steps, state, args.only, pack)
    print(f"{counts['good']} good, {counts['failed']} failed, {len(left)} left: {REPORT}/report.txt")
    sys.exit(75 if left and not args.only else 1 if counts["failed"] else 0)


if __name__ == "__main__":
    main()
