#!/usr/bin/env python3
"""Compiled executables against PyTorch, eager and torch.compile: same weights, same inputs, paired
in one run.

usage: python3 bench/peers/compare.py [--case unet|step|ae]... [--peer eager|compile]...
                                      [--python PYTHON] [--rounds 5] [--threads 2] [--json F]

unet  PVDM-S denoise, batch 1        step  PVDM-S training step (loss, gradients, AdamW), batch 1
ae    autoencoder at 256 pixels, extract + decode, batch 1

Each round runs both sides one after the other, in processes of their own; what is quoted is the
median of the ratios. PyTorch runs with MALLOC_MMAP_MAX_=0, which spares it page faults. The floor
is the time an sgemm of the same FLOPs would take, at the rate measured in the same run. Memory is
the peak resident set, less 16 bytes a parameter for the training step, less an empty process.

--python names an interpreter with another PyTorch (a venv: bench/README.md). With --peer compile
the network is compiled before the first run that counts; its process also holds the compiler, so
its memory is not compared.
"""
import argparse
import json
import os
import re
import statistics
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
PVDMC = os.environ.get("PVDMC", os.path.join(ROOT, "out", "release", "pvdmc"))
WORK = os.path.join(ROOT, "out", "peers")
SMALL = ["-D", "model_channels=128"]
GFLOP = {"unet": 71.6, "step": 3 * 71.6, "ae": 2602.0}
REPEAT = {"unet": 5, "step": 3, "ae": 1}
PARAMETERS = {"step": 132.2e6}


def peak_of(command, env):
    """Runs a command; its output and its peak resident set in bytes."""
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **env})
    text = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        sys.exit(f"compare: {' '.join(command)} ended with status {child.returncode}")
    return text, usage.ru_maxrss * 1024


def torch_side(case, args, peer):
    text, peak = peak_of([args.python, __file__, "--torch", case, "--peer", peer,
                          "--threads", str(args.threads)],
                         {"MALLOC_MMAP_MAX_": "0", "OMP_NUM_THREADS": str(args.threads)})
    told = json.loads(text.splitlines()[-1])
    return told["seconds"], peak - told["empty"], told["version"]


def our_side(exe, case, threads):
    weights, inputs = f"{WORK}/weights.safetensors", f"{WORK}/inputs.safetensors"
    repeat = str(REPEAT[case] + 1)
    commands = {
        "unet": [["run", "denoise", "--weights", f"unet={weights}#unet.", "--in", inputs,
                  "--repeat", repeat]],
        "step": [["train", "diffusion", "--weights", f"unet={weights}#unet.", "--replay", inputs,
                  "--steps", repeat, "--set", "ema_every=0"]],
        "ae": [["run", "extract", "--weights", f"ae={weights}#ae.", "--in", f"x={inputs}:video",
                "--repeat", "1"],
               ["run", "decode", "--weights", f"ae={weights}#ae.", "--in", f"z={inputs}:x",
                "--repeat", "1"]]}
    seconds = peak = 0
    env = {"OMP_NUM_THREADS": str(threads)}
    _, empty = peak_of([exe, "info"], env)
    for command in commands[case]:
        text, used = peak_of([exe, *command], env)
        found = re.search(r"^median ([0-9.]+) ms", text, re.M)
        if not found:
            sys.exit(f"compare: no timing in the output of {' '.join(command)}:\n{text[-500:]}")
        seconds, peak = seconds + float(found[1]) / 1000, max(peak, used - empty)
    return seconds, peak


def run_torch(case, threads, peer):
    """One process of the PyTorch side: the median time, after a first run that is not counted."""
    import resource
    import time
    import torch
    sys.path.insert(0, HERE)
    import pvdm_torch as network
    torch.set_num_threads(threads)
    empty = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    data = network.read_safetensors(f"{WORK}/inputs.safetensors")
    prefix = "ae." if case == "ae" else "unet."
    net = network.Autoencoder() if case == "ae" else network.UNet(128)
    network.load(net, network.read_safetensors(f"{WORK}/weights.safetensors", prefix), prefix)
    times = []
    forward, extract, decode = net, getattr(net, "extract", None), getattr(net, "decode", None)
    fused = {}
    if peer == "compile":
        forward = torch.compile(net)
        if case == "ae":
            extract, decode = torch.compile(extract), torch.compile(decode)
        fused = {"fused": True}
    if case == "step":
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, weight_decay=0.01, **fused)
        beta = torch.linspace(0.0015 ** 0.5, 0.0195 ** 0.5, 1000, dtype=torch.float64) ** 2
        signal = torch.cumprod(1 - beta, 0)[data["t"]].float()[:, None, None]

    def once():
        if case == "unet":
            with torch.no_grad():
                forward(data["x"], data["t"], data["cond"])
        elif case == "ae":
            with torch.no_grad():
                extract(data["video"])
                decode(data["x"])
        else:
            optimizer.zero_grad(set_to_none=True)
            noisy = signal.sqrt() * data["x_start"] + (1 - signal).sqrt() * data["noise"]
            loss = ((forward(noisy, data["t"], data["cond"]) - data["noise"]) ** 2).mean()
            loss.backward()
            optimizer.step()

    for _ in range(REPEAT[case] + (0 if case == "ae" and peer == "eager" else 1)):
        start = time.perf_counter()
        once()
        times.append(time.perf_counter() - start)
    seconds = statistics.median(times[1:] or times)
    print(json.dumps({"seconds": seconds, "empty": empty, "version": torch.__version__}))


def prepare():
    """Random weights (not zero where the initialiser says zero: all work must count) and inputs."""
    import torch
    sys.path.insert(0, HERE)
    import pvdm_torch as peer
    os.makedirs(WORK, exist_ok=True)
    if os.path.exists(f"{WORK}/inputs.safetensors"):
        return
    torch.manual_seed(0)
    tensors = {}
    for prefix, net in (("unet.", peer.UNet(128)), ("ae.", peer.Autoencoder())):
        for name, value in net.state_dict().items():
            tensors[prefix + name] = value
    peer.write_safetensors(f"{WORK}/weights.safetensors", tensors)
    inputs = {name: torch.randn(1, 4, 2048) for name in ("x", "cond", "x_start", "noise")}
    inputs["x"] = inputs["x"].clamp(-1, 1)
    inputs["video"] = torch.rand(1, 3, 16, 256, 256) * 2 - 1
    inputs["t"] = torch.tensor([500])
    peer.write_safetensors(f"{WORK}/inputs.safetensors", inputs)


def sgemm_rate(threads):
    """GFLOP/s of the BLAS's sgemm on large squares, in a process of its own."""
    source, exe = os.path.join(HERE, "sgemm.c"), f"{WORK}/sgemm"
    folder = "/usr/lib/x86_64-linux-gnu/openblas-openmp"
    subprocess.run(["cc", "-O2", "-fopenmp", source,
                    "-I/usr/include/x86_64-linux-gnu/openblas-openmp",
                    f"{folder}/libopenblas.a", "-lm", "-o", exe], check=True)
    text, _ = peak_of([exe], {"OMP_NUM_THREADS": str(threads)})
    return float(text)


def compare_case(case, exe, args):
    """The report of one case: every round runs our side and then each peer."""
    peers, rows, version = args.peer or ["eager"], [], None
    for _ in range(args.rounds):
        rate = sgemm_rate(args.threads)
        ours, our_peak = our_side(exe, case, args.threads)
        row = {"seconds": ours, "bytes": our_peak - 16 * PARAMETERS.get(case, 0),
               "share_of_sgemm": GFLOP[case] / rate / ours}
        for peer in peers:
            if peer == "unfused":
                theirs, their_peak = our_side(f"{exe}-O0", case, args.threads)
            else:
                theirs, their_peak, version = torch_side(case, args, peer)
            row[f"{peer}_seconds"], row[f"{peer}_speedup"] = theirs, theirs / ours
            row[f"{peer}_bytes"] = their_peak - 16 * PARAMETERS.get(case, 0)
        rows.append(row)
    middle = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
    print(f"{case:5} {middle['seconds']:.3f} s, {100 * middle['share_of_sgemm']:.0f} % of the "
          f"sgemm rate, {middle['bytes'] / 2**20:.0f} MiB")
    for peer in peers:
        memory = f", {middle[peer + '_bytes'] / 2**20:.0f} MiB" if peer != "compile" else ""
        name = "-O0" if peer == "unfused" else f"PyTorch {version} {peer}"
        print(f"      {middle[peer + '_speedup']:5.2f} times as fast as {name} "
              f"({middle[peer + '_seconds']:.3f} s{memory})", flush=True)
    return {**middle, "torch": version, "rounds": args.rounds}


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--case", action="append", choices=list(GFLOP))
    parser.add_argument("--peer", action="append", choices=["eager", "compile", "unfused"],
                        help="PyTorch (default: eager), or our own -O0")
    parser.add_argument("--python", default=sys.executable, help="interpreter of the PyTorch side")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json")
    parser.add_argument("--torch", help=argparse.SUPPRESS)
    parser.add_argument("--prepare", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.torch:
        return run_torch(args.torch, args.threads, args.peer[0])
    if args.prepare:
        return prepare()
    # In a process of its own: a child's peak counts from the size of the process that started it.
    subprocess.run([args.python, __file__, "--prepare"], check=True)
    exe = f"{WORK}/pvdm-s"
    for level, out in (("-O2", exe), ("-O0", f"{exe}-O0")):
        subprocess.run([PVDMC, f"{ROOT}/models/pvdm.model", *SMALL, level, "-o", out], check=True)
    report = {case: compare_case(case, exe, args) for case in args.case or list(GFLOP)}
    if args.json:
        with open(args.json, "w", encoding="ascii") as file:
            json.dump(report, file, indent=1)
    return None


if __name__ == "__main__":
    main()
