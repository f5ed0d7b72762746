#!/usr/bin/env python3
"""The steps of bench/gpu.sh on a machine with a GPU; see there.

A step is one process or a few, with a limit of its own. What a step gave is kept in
out/gpu-report/state.json, so the next call goes on behind it; a step that was cut short by the
call's limit is begun anew, one that failed is not tried again (--again WORD does). Phases: kernels,
programs (on both devices), times, ladders, peers (PyTorch), sanitizer (right behind the programs
once a kernel went wrong). A step that is expected to take longer than there is time left waits for
the next call, and shorter ones go before; --plan prints what is expected. A kernel that faults or
hangs ends its program, which is begun again behind that case.
"""
import argparse
import ctypes
import glob
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections import namedtuple

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
PACKED = os.environ.get("PVDM_GPU_PACK") or os.path.join(ROOT, "out", "gpu")
REPORT = os.environ.get("PVDM_GPU_REPORT") or os.path.join(ROOT, "out", "gpu-report")
DRIVER = os.environ.get("PVDM_CUDA_DRIVER") or "libcuda.so.1"
PACK = os.path.join(REPORT, "pack")
STEP_LIMIT, CASES_LIMIT, SANITIZER_LIMIT = 300, 90, 60  # seconds of a process
RESTARTS = 12  # of a program of cases that ended before its end
HANGS = 3  # of its cases, until it is left alone
# Where the driver may lie, if not where the loader looks
DRIVERS = ["libcuda.so.1"] + [f"{folder}/libcuda.so.1" for folder in (
    "/usr/local/nvidia/lib64", "/usr/local/nvidia/lib", "/usr/lib/x86_64-linux-gnu", "/usr/lib64")]
OUTPUT, GRADIENT = 1e-5, 1e-4  # bounds of differences between the devices, in the 2-norm
BF16_OUTPUT, BF16_GRADIENT = 5e-2, 1e-1
OFTEN = {"repeat": "21", "steps": "8", "rounds": ["--rounds", "3"]}
ONCE = {"repeat": "1", "steps": "2", "rounds": ["--rounds", "1", "--ends"]}    # in a rehearsal
SAMPLE = {}  # in a rehearsal one case of each template
PHASES = ["kernels", "programs", "times", "ladders", "peers", "sanitizer"]
AE_BATCH = 4  # of a training step of the autoencoder in full size: 11.3 GB a clip
Step = namedtuple("Step", "phase name seconds body")  # seconds: what it is expected to take
sys.path.insert(0, HERE)
import report  # noqa: E402  (beside this file)
import tensors  # noqa: E402


class Failed(Exception):
    """A step went wrong; the text says how. What it gave before that is kept."""

    def __init__(self, text, data=None):
        super().__init__(text)
        self.data = data


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


def own_group():
    """In a child: a process group of its own, which ends when this script is killed."""
    os.setpgrp()
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def process(command, env, limit):
    """(status, output) of a command; status None: it was still running after so many seconds. Its
    whole process group ends with it, and what it printed until then is not lost."""
    child = subprocess.Popen(command, cwd=ROOT, text=True, errors="replace",
                             stdin=subprocess.DEVNULL,
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                             env={**os.environ, **(env or {})},
                             preexec_fn=own_group)
    late = False
    try:
        text, _ = child.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        late = True
        os.killpg(child.pid, signal.SIGKILL)
        try:
            text, _ = child.communicate(timeout=20)
        except subprocess.TimeoutExpired:  # a driver may not let go of it
            text = ""
    except BaseException:
        os.killpg(child.pid, signal.SIGKILL)
        raise
    return None if late else child.returncode, text


def room(limit):
    """Seconds that a process may take; Again where that is too little to begin one."""
    left = min(limit, CLOCK.left() - 5)
    if left < min(limit, 20):
        raise Again
    return left


def call(*command, env=None, limit=STEP_LIMIT):
    """A command's output; Failed with the end of it when its status is not 0."""
    seconds = room(limit)
    status, text = process(command, env, seconds)
    if status is None:
        if seconds < limit:
            raise Again
        raise Failed(f"still running after {limit} s: {' '.join(command)}\n{text[-1500:]}")
    if status != 0:
        raise Failed(f"status {status}: {' '.join(command)}\n{text[-1500:]}")
    return text


def binary(model):
    return os.path.join(PACK, "bin", model)


def work(name):
    return os.path.join(REPORT, "work", name)


# ---- the machine ----

def find_gpu():
    """None, or what is missing. The driver that is found is the one that all steps open."""
    global DRIVER
    cuda, missing = None, ""
    for path in [DRIVER] if os.environ.get("PVDM_CUDA_DRIVER") else DRIVERS:
        try:
            cuda, DRIVER = ctypes.CDLL(path), path
            break
        except OSError as error:
            missing = missing or f"no driver of CUDA: {error}"
    if cuda is None:
        return missing
    os.environ["PVDM_CUDA_DRIVER"] = DRIVER
    count = ctypes.c_int(0)
    if cuda.cuInit(0) != 0 or cuda.cuDeviceGetCount(ctypes.byref(count)) != 0 or count.value == 0:
        return "the driver finds no device"
    return None


def find_cublaslt():
    """Where cuBLASLt lies, if only as a Python package, of which the loader does not know."""
    if os.environ.get("PVDM_CUBLASLT"):
        return os.environ["PVDM_CUBLASLT"]
    for folder in ["/usr/local/cuda/lib64"] + [f"{each}/nvidia/*/lib" for each in sys.path if each]:
        for path in sorted(glob.glob(f"{folder}/libcublasLt.so.1[23]"), reverse=True):
            os.environ["PVDM_CUBLASLT"] = path
            return path
    return "the loader's, or none"


def machine():
    told = {"python": sys.version.split()[0], "cores": os.cpu_count(), "driver": DRIVER,
            "cublaslt": os.environ.get("PVDM_CUBLASLT", "not looked for")}
    asks = {"gpu": ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,clocks.sm",
                    "--format=csv,noheader"],
            "torch": [sys.executable, "-c", "import torch; print(torch.__version__)"]}
    for name, command in asks.items():
        try:
            told[name] = call(*command, limit=60).strip()
        except (Failed, OSError) as error:
            told[name] = f"not there ({str(error).splitlines()[0]})"
    return told


def ceilings():
    """GB/s of a copy (read + written), TFLOP/s of large products, measured by PyTorch."""
    return json.loads(call(sys.executable, os.path.join(HERE, "peers.py"),
                           "ceilings").splitlines()[-1])


# ---- correctness ----

def kernels(test):
    """The cases of one program. One that ends the program, or does not end, is told, and the
    program begun again behind it: after a fault of a kernel nothing else runs in a process."""
    program, begun, wrong = os.path.join(PACK, "cases", test), 0, []
    env = {**cases_env(), **SAMPLE}
    last, text, hangs = 0, "", 0
    for _ in range(RESTARTS):
        seconds = room(CASES_LIMIT)
        status, text = process([program], {**env, "PVDM_CASES_FROM": str(last + 1)}, seconds)
        if status is None and seconds < CASES_LIMIT:
            raise Again
        cases = re.findall(r"^case (\d+): (.*)$", text, re.M)
        begun += len(cases)
        wrong += re.findall(r"^FAIL (.*)$", text, re.M)
        if re.search(r"^\d+ passed, \d+ failed$", text, re.M):
            break
        if not cases:
            raise Failed(f"{'too slow' if status is None else f'status {status}'}: {text[-1500:]}")
        last = int(cases[-1][0])
        hung = status in (None, -signal.SIGALRM)
        if "\nFAIL " not in text[text.rindex(f"case {last}: "):]:
            wrong.append(f"{cases[-1][1]}: " + ("still running" if hung else f"status {status}"))
        hangs += hung
        if hangs == HANGS:
            wrong.append(f"hung {hangs} times: the cases behind {last} were not run")
            break
    else:
        wrong.append(f"ended {RESTARTS} times: the cases behind {last} were not run")
    if wrong or not begun:
        raise Failed(f"{len(wrong)} of {begun} cases\n"
                     + "\n".join(line[:240] for line in wrong)[:12000]
                     + ("" if begun else text[-1500:]))
    return {"cases": begun}


def cases_env():
    return {"PVDM_CASES": DRIVER, "PVDM_IMAGES": os.path.join(PACK, "images"), "PVDM_ROOT": ROOT}


def weights(model):
    """Files of all instances, none of whose tensors is zero throughout."""
    files = []
    for instance in info(model)["instances"]:
        path = work(f"{model}-{instance['name']}.safetensors")
        if not os.path.exists(path):
            call(binary(model), "weights", "init", "--instance", instance["name"], "--seed", "3",
                 "-o", path + ".part")
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
    """Runs a command on both devices, ((device, model), ...); both write a file; how far they are
    apart."""
    files, seconds = [], {}
    for device, model in pairs:
        files.append(work(f"{model}-{device}.out"))
        start = time.time()
        call(binary(model), *command, *options, "--device", device, "--seed", "5",
             "--out", files[-1])
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
    bounds = {"run": OUTPUT, "grad": GRADIENT}
    if model != base:
        bounds = {"run": BF16_OUTPUT, "grad": BF16_GRADIENT}
    mixed = model != base and command == "grad"
    return on_both((("cpu", base), ("cuda", model)), bounds[command], [command, name],
                   [*weights(base), "--in", path],
                   tensors.apart_together if mixed else tensors.apart)


def replay_file(model, stage, batch):
    """A batch of what a stage's loss reads: the inputs of the gradient of that name, else of
    all."""
    told = info(model)
    names = {each["name"] for each in told["gradients"]}
    own = {name for name in names if name.startswith(stage)} or names
    read = {each["name"]: each for whole in told["programs"]
            if whole["name"] in own for each in whole["inputs"]}
    return inputs(model, {"name": stage, "inputs": list(read.values())}, batch)


def replayed(model, stage):
    """Losses of a few training steps on both devices, from the same batches and draws."""
    path = replay_file(model, stage, 2)
    losses = {}
    for device in ("cpu", "cuda"):
        text = call(binary(model), "train", stage, *weights(model), "--replay", path,
                    "--steps", "3",
                    "--device", device, "--seed", "5")
        losses[device] = [float(x) for x in re.findall(r"loss\S*[ =]+([-0-9.e+]+)", text)]
    if not losses["cpu"] or len(losses["cpu"]) != len(losses["cuda"]):
        raise Failed(f"losses are not told: {losses}")
    error = max(abs(a - b) / max(abs(a), 1e-6) for a, b in zip(losses["cpu"], losses["cuda"]))
    if not error <= GRADIENT:
        raise Failed(f"losses differ: {losses}")
    return {"error": error, "losses": losses["cuda"]}


def find_sanitizer():
    return shutil.which("compute-sanitizer") or next(
        iter(glob.glob("/usr/local/cuda*/bin/compute-sanitizer")), None)


def sanitized(tool, test):
    """A case of each template of one program under a tool of compute-sanitizer."""
    env = {**cases_env(), "PVDM_SAMPLE": "1", "PVDM_CASE_SECONDS": "60"}
    seconds = room(SANITIZER_LIMIT)
    status, text = process([find_sanitizer(), "--tool", tool, "--print-limit", "20",
                            os.path.join(PACK, "cases", test)],
                           env, seconds)
    if status is None and seconds < SANITIZER_LIMIT:
        raise Again
    told = re.search(r"ERROR SUMMARY: (\d+) error|RACECHECK SUMMARY: (\d+) hazard", text)
    passed = re.search(r"^(\d+) passed, 0 failed$", text, re.M)
    if not told or not passed or int(told[1] or told[2]) > 0:
        why = "still running" if status is None else f"status {status}"
        lines = [line for line in text.splitlines() if line.startswith(("=========", "FAIL"))]
        raise Failed(f"{why}\n" + ("\n".join(lines)[:3000] or text[-1500:]))
    return {"programs": int(passed[1]), "errors": 0}


# ---- timings ----

def median(text):
    found = re.search(r"^median ([0-9.]+) ms", text, re.M)
    if not found:
        raise Failed(f"no timing in:\n{text[-800:]}")
    return float(found[1])


def timed(model, name, batch, env=None):
    """A program's median time, as a graph, with all weights and inputs on the device."""
    found = next(p for p in info(model)["programs"] if p["name"] == name)
    command = [binary(model), "run", name, *weights(plain(model)),
               "--in", inputs(plain(model), found, batch),
               "--device", "cuda", "--seed", "5"]
    variant = found["variants"][0]
    return {"milliseconds": median(call(*command, "--repeat", OFTEN["repeat"], env=env)),
            "batch": batch,
            "launches": variant["launches"],
            "gflop": (variant["flops_fixed"] + variant["flops_sample"] * batch) / 1e9}


def work_of(told, stage):
    """The plan of a stage's step as --replay runs it: the gradient of the program that its loss
    calls, without what makes that program's inputs, else the stage's own."""
    of_loss = [each for each in told["gradients"] if each["name"].startswith(stage)]
    entry = of_loss[0] if of_loss else next(s for s in told["stages"]
                                            if s["name"] == stage)["minimize"][0]
    return entry["variants"][0]


def step_timed(model, stage, batch, *options):
    """A training step: loss, gradients, optimizer; of diffusion without the frozen encoder, which
    makes what its loss reads."""
    path, variant = replay_file(plain(model), stage, batch), work_of(info(model), stage)
    text = call(binary(model), "train", stage, *weights(plain(model)), "--replay", path, "--steps",
                OFTEN["steps"], "--device", "cuda", *options)
    return {"milliseconds": median(text), "batch": batch, "launches": variant["launches"],
            "gflop": (variant["flops_fixed"] + variant["flops_sample"] * batch) / 1e9}


def stage_inputs(model, stage, batch):
    """A stage's batch, which numpy draws once for all, and sooner than an executable would."""
    if tensors.numpy is None:
        return []
    entry = next(s for s in info(model)["stages"] if s["name"] == stage)["minimize"][0]
    return ["--in", inputs(model, {"name": f"train-{stage}", "inputs": entry["inputs"]}, batch)]


def ladder(model, name, batch, *options):
    """First rung and last (--last: that alone); of each kernel its time, bytes, FLOPs and share of
    the roofline."""
    path = work(f"{model}-{name}-{batch}-bench.json")

    def measure():
        given = stage_inputs(plain(model), name.removeprefix("train."),
                             batch) if name.startswith("train.") else []
        call(binary(model), "bench", name, "--device", "cuda", *OFTEN["rounds"], "--quiet",
             "--json", path,
             *weights(plain(model)), *options, *given, "--batch", str(batch))

    try:
        measure()
    except Failed as error:  # the unfused rung may need more memory than there is
        fits = re.search(r"batch (\d+) fits", str(error))
        if not fits:
            raise
        batch = int(fits[1])
        measure()
    with open(path, encoding="utf-8") as file:
        told = json.load(file)
    rungs = told["programs"][0]["rungs"]
    for whole in told["programs"]:
        whole.pop("graph", None)  # large, and of use only to the page
    last = rungs[-1]
    first = {"unfused_milliseconds": 1000 * rungs[0]["seconds"]} if len(rungs) > 1 else {}
    return {"milliseconds": 1000 * last["seconds"], "batch": batch, "launches": last["launches"],
            "gflop": last["flops"] / 1e9,
            "predicted_milliseconds": 1000 * last["predicted_seconds"],
            "memory_bytes": last["memory_bytes"], **first, "report": told}


def told_cases(text):
    """Lines of JSON that tell of a case; compilers print others between them."""
    told = []
    for line in text.splitlines():
        try:
            each = json.loads(line) if line.startswith("{") else None
        except ValueError:
            continue
        if isinstance(each, dict) and "case" in each:
            told.append(each)
    return told


def peer(mode, cases, small, limit):
    """PyTorch's cases of one mode in one process. What ran before a case that fails is kept."""
    denoise = next(p for p in info("large")["programs"] if p["name"] == "denoise")
    given = ["--small"] * small + [*weights("large"), "--in", inputs("large", denoise, 1)]
    for model, dtype in (("large", "f32"), ("large-bf16", "bf16")):
        path = work(f"{model}-cuda.out")
        given += ["--out", f"{dtype}={path}"] if os.path.exists(path) else []
    seconds = room(limit)
    status, text = process([sys.executable, os.path.join(HERE, "peers.py"), *cases, "--mode", mode,
                            *given], None,
                           seconds)
    if status is None and seconds < limit:
        raise Again
    told = told_cases(text)
    wrong = [f"{each['case']}:{each['batch']}: {each['failed']}" for each in told
             if "failed" in each]
    for each in told:
        wrong += [f"our {dtype} is {error:.2e} apart"
                  for dtype, error in each.get("apart", {}).items()
                  if not error <= (GRADIENT if dtype == "f32" else BF16_OUTPUT)]
    if len(told) < len(cases):
        why = "still running" if status is None else f"status {status}"
        wrong.append(f"{why} before {cases[len(told)]}: {text[-1500:]}")
    data = {"cases": [each for each in told if "failed" not in each]}
    if wrong:
        raise Failed("\n".join(wrong), data)
    return data


# ---- the list ----

def correctness(pack):
    steps = [Step("kernels", "machine", 20, machine)]
    steps += [Step("kernels", f"kernels {t}", 8, lambda t=t: kernels(t)) for t in pack["cases"]]
    try:
        small = info("tiny")
    except (Failed, OSError) as error:
        print(f"executables of models do not start here: {error}", flush=True)
        return steps + [Step("programs", "executables start", 1, lambda: info("tiny"))]
    for model in ("tiny", "tiny-bf16"):
        for each in small["programs"]:
            steps.append(Step("programs", f"run {model} {each['name']}", 3,
                              lambda m=model, n=each["name"]: program(m, n, "run")))
        for each in small["gradients"]:
            steps.append(Step("programs", f"grad {model} {each['name']}", 5,
                              lambda m=model, n=each["name"]: program(m, n, "grad")))
    for each in small["stages"]:
        steps.append(Step("programs", f"train tiny {each['name']}", 6,
                          lambda n=each["name"]: replayed("tiny", n)))
    for model, seconds in (("large", 50), ("large-bf16", 15)):  # the first also makes the weights
        steps.append(Step("programs", f"run {model} denoise", seconds,
                          lambda m=model: program(m, "denoise", "run")))
    return steps


def timings(batches, ae_batch):
    """What a user waits for: a denoise, a step of a sampler, a training step with the frozen
    encoder ("train": whether the batch has a condition, which is encoded too, is drawn, always
    alike) and without it ("step"), one of the autoencoder ("ae", without LPIPS, as the peer). What
    is compared with most comes first."""
    least, most = batches[0], batches[-1]
    steps = [Step("times", "ceilings", 20, ceilings)]
    alone = ["--set", "accumulate=1", "--set", "perceptual_weight=0"]
    for model, scale in (("large-bf16", 1), ("large", 3)):
        steps += [Step("times", f"time {model} denoise batch {b}", 8 + scale * b // 8,
                       lambda m=model, b=b: timed(m, "denoise", b)) for b in batches]
        steps += [Step("times", f"time {model} step batch {most}", 15 * scale,
                       lambda m=model: step_timed(m, "diffusion", most)),
                  Step("times", f"time {model} train batch {most}", 25 * scale,
                       lambda m=model: ladder(m, "train.diffusion", most, "--last")),
                  Step("times", f"time {model} ddim_step batch {least}", 8,
                       lambda m=model: timed(m, "ddim_step", least)),
                  Step("times", f"time {model} ae batch {ae_batch}", 10 * scale,
                       lambda m=model: step_timed(m, "autoencoder", ae_batch, *alone))]
    steps += [Step("times", f"time large-bf16 denoise batch {b} without wgmma", 8 + b // 4,
                   lambda b=b: timed("large-bf16", "denoise", b, {"PVDM_WGMMA": "0"}))
              for b in (least, most)]
    return steps


def ladders(batches):
    """Each rung of the compiler's work, and every kernel of the last one."""
    least, most = batches[0], batches[-1]
    steps = [Step("ladders", f"ladder {model} denoise batch {batch}", seconds,
                  lambda m=model, b=batch: ladder(m, "denoise", b))
             for model, batch, seconds in (("large-bf16", least, 20), ("large-bf16", most, 40),
                                           ("large", least, 20))]
    steps.append(Step("ladders", f"ladder large-bf16 train batch {most}", 60,
                      lambda: ladder("large-bf16", "train.diffusion", most, "--ends")))
    steps.append(Step("ladders", f"ladder large denoise batch {most}", 60,
                      lambda: ladder("large", "denoise", most)))
    return steps


def pytorch(batches, ae_batch, small):
    """Compilation last, since it takes longest; max-autotune only of what it fits for."""
    least, most = batches[0], batches[-1]
    sizes = [f"denoise:{batch}" for batch in batches]
    steps = [f"{case}:{most}" for case in ("step", "train", "train-cond")] + [f"ae:{ae_batch}"]
    plan = (("eager", "eager", ["check", *sizes, *steps], 120),
            ("bf16", "bf16", [*sizes, *steps], 75),
            ("compile denoise", "compile", sizes, 120), ("compile step", "compile", steps[:1], 120),
            ("max-autotune denoise", "max-autotune", [f"denoise:{most}"], 150),
            ("max-autotune denoise alone", "max-autotune", [f"denoise:{least}"], 120),
            ("compile train", "compile", steps[1:], 180))
    return [Step("peers", f"peer {name}", seconds,
                 lambda mode=mode, cases=cases, limit=2 * seconds: peer(mode, cases, small, limit))
            for name, mode, cases, seconds in plan]


def sanitizer(tests):
    """compute-sanitizer over a case of each template, where it is there. Its racecheck does not
    follow TMA and wgmma."""
    if not find_sanitizer():
        return []
    both = [("memcheck", tests), ("racecheck", [test for test in tests if "wgmma" not in test])]
    return [Step("sanitizer", f"{tool} {test}", 15,
                 lambda tool=tool, test=test: sanitized(tool, test))
            for tool, those in both for test in those]


def all_steps(pack, state):
    """All that there is to do, in its order. Where a kernel went wrong the sanitizer is asked
    before anything is timed."""
    batches, ae_batch = ((1, 2), 1) if pack["rehearsal"] else ((1, 8, 64), AE_BATCH)
    steps = [*correctness(pack), *timings(batches, ae_batch), *ladders(batches),
             *pytorch(batches, ae_batch, pack["rehearsal"]), *sanitizer(pack["cases"])]
    order = list(PHASES)
    if any(step.phase == "kernels" and state.get(step.name, {}).get("status") == "failed"
           for step in steps):
        order.insert(order.index("times"), order.pop())
    return sorted(steps, key=lambda step: order.index(step.phase))


def print_plan(steps, state):
    """What is left to do, by phase, and the calls it takes."""
    whole = 0
    for phase in PHASES:
        left = [step for step in steps if step.phase == phase and step.name not in state]
        seconds = sum(step.seconds for step in left)
        whole += seconds
        print(f"{phase:9} {len(left):3} steps, about {seconds / 60:4.1f} minutes")
    print(
        f"all       {whole / 60:4.1f} minutes expected, in calls of at most {CLOCK.limit / 60:.0f}")


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


def write_report(pack, state, names):
    counts = {s: sum(state[n]["status"] == s for n in names if n in state)
              for s in ("good", "failed")}
    left = [n for n in names if n not in state]
    save("report.txt", report.text(pack, state, names))
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


def leave_wgmma(steps, state):
    """Where a case of wgmma's kernels went wrong nothing else is run on them: programs would fail
    alike, or hang one after the other. --again runs the cases anew."""
    wrong = [step.name for step in steps if step.phase == "kernels" and "wgmma" in step.name
             and state.get(step.name, {}).get("status") == "failed"]
    if wrong and os.environ.get("PVDM_WGMMA") != "0":
        os.environ["PVDM_WGMMA"] = "0"
        print(f"without wgmma from here on, since there is something wrong: {', '.join(wrong)}",
              flush=True)
    return wrong


def run_steps(steps, state, only, pack):
    """Runs what is not done yet and fits into what is left of the call. State and report are
    written behind each step."""
    names = [step.name for step in steps]
    for step in steps:
        if step.name in state or only not in f"{step.phase} {step.name}":
            continue
        if CLOCK.left() < min(step.seconds, CLOCK.limit / 2):
            continue
        start = time.time()
        wrong = leave_wgmma(steps, state) if step.phase != "kernels" else []
        try:
            state[step.name] = {"status": "good", "data": step.body()}
        except Again:
            break
        except Exception as error:  # any failure is one step's; the next ones go on
            state[step.name] = {"status": "failed", "why": f"{type(error).__name__}: {error}",
                                "data": getattr(error, "data", None)}
        state[step.name]["seconds"] = round(time.time() - start, 1)
        if wrong:
            state[step.name]["without_wgmma"] = True
        save("state.json", state)
        print(f"{state[step.name]['status']:6} {step.name} ({state[step.name]['seconds']} s): "
              f"{report.summary(state[step.name])[:300]}", flush=True)
        write_report(pack, state, names)
    return write_report(pack, state, names)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--limit", type=float, default=540, help="seconds of this call (540)")
    parser.add_argument("--only", default="", help="steps whose phase or name has this word")
    parser.add_argument("--again", default=None, help="forget what steps with this word gave")
    parser.add_argument("--plan", action="store_true",
                        help="prints what is left, and how long it may take")
    args = parser.parse_args()
    missing = find_gpu()
    if missing and not args.plan:
        print(f"gpu: no GPU here: {missing}", file=sys.stderr)
        sys.exit(3)
    if not os.path.exists(os.path.join(PACKED, "pack.json")):
        sys.exit("gpu: nothing is packed under out/gpu: sh bench/gpu.sh pack, where everything "
                 "can be built")
    CLOCK.limit, CLOCK.end = args.limit, time.time() + args.limit
    os.makedirs(os.path.join(REPORT, "work"), exist_ok=True)
    pack = unpack()
    if pack["rehearsal"]:
        os.environ.setdefault("PVDM_PEER_DEVICE", "cpu")
        OFTEN.update(ONCE)
        SAMPLE["PVDM_SAMPLE"] = "1"
    else:
        find_cublaslt()
    os.environ.setdefault("XDG_CACHE_HOME", os.path.join(REPORT, "work", "cache"))
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", os.path.join(REPORT, "work", "inductor"))
    state = load_state()
    for name in list(state):
        if args.again is not None and args.again in name:
            del state[name]
    steps = all_steps(pack, state)
    print_plan(steps, state)
    if args.plan:
        return
    counts, left = run_steps(steps, state, args.only, pack)
    print(
        f"{counts['good']} good, {counts['failed']} failed, {len(left)} left: {REPORT}/report.txt")
    sys.exit(75 if left and not args.only else 1 if counts["failed"] else 0)


if __name__ == "__main__":
    main()
