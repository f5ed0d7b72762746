#!/usr/bin/env python3
"""PyTorch on the GPU: the machine's ceilings, and the peers of our programs, timed by events.

usage: python3 bench/gpu/peers.py ceilings
       python3 bench/gpu/peers.py denoise|step|train|train-cond [--batch N] [--width 256]
                                  [--mode eager|bf16|compile|max-autotune]

eager  f32 without TF32   bf16  autocast, channels_last   compile, max-autotune  that, torch.compile
A step is loss, gradients and AdamW (fused) from latents; `train` encodes a clip first, with the frozen
autoencoder, `train-cond` two. The last line is JSON. PVDM_PEER_DEVICE=cpu rehearses it, in small.
"""
import argparse
import json
import os
import statistics
import sys

import time

import torch

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(HERE), "peers"))
DEVICE = os.environ.get("PVDM_PEER_DEVICE") or "cuda"
ON_GPU = DEVICE == "cuda"
SMALL = {"resolution": 64, "frames": 8, "channels": 64, "depth": 1, "heads": 2, "width": 32}


def once(body):
    """Milliseconds of one body()."""
    if not ON_GPU:
        start = time.perf_counter()
        body()
        return 1000 * (time.perf_counter() - start)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    body()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end)


def milliseconds(body, repeat, warm=3):
    """Median time of body() on the device."""
    for _ in range(warm):
        body()
    return statistics.median(once(body) for _ in range(repeat))


def ceilings():
    x = torch.empty(1 << (29 if ON_GPU else 16), device=DEVICE, dtype=torch.float32).normal_()
    y = torch.empty_like(x)
    told = {"copy_gbps": 2 * x.numel() * 4 / milliseconds(lambda: y.copy_(x), 10) / 1e6}
    del x, y
    size = 8192 if ON_GPU else 64
    for name, dtype in (("f32", torch.float32), ("bf16", torch.bfloat16)):
        a, b = (torch.randn(size, size, device=DEVICE, dtype=dtype) for _ in range(2))
        told[f"{name}_tflops"] = 2 * size ** 3 / milliseconds(lambda: a @ b, 5) / 1e9
    return told


def network(args):
    import pvdm_torch as peer
    torch.manual_seed(0)
    if args.width == 256:
        net = peer.UNet(256)
    else:
        net = peer.UNet(args.width, mult=(1, 2), blocks=1, heads=4, sizes=((8, 8), (8, 8), (8, 8)))
    return prepared(net, args)


def prepared(net, args):
    net = net.to(DEVICE)
    return net.to(memory_format=torch.channels_last) if args.mode != "eager" else net


def compiled(run, args):
    if args.mode == "max-autotune":
        return torch.compile(run, mode="max-autotune-no-cudagraphs")
    return torch.compile(run) if args.mode == "compile" else run


def encoder(args):
    """What encodes a batch of clips, and the clips."""
    import pvdm_torch as peer
    net = prepared(peer.Autoencoder() if args.width == 256 else peer.Autoencoder(**SMALL), args).requires_grad_(False)
    frames, side = (16, 256) if args.width == 256 else (SMALL["frames"], SMALL["resolution"])
    clips = torch.rand(args.batch, 3, frames, side, side, device=DEVICE) * 2 - 1
    return compiled(net.extract, args), clips


def measured(args):
    net = network(args)
    length = sum(rows * columns for rows, columns in net.sizes)
    x, cond, noise = (torch.randn(args.batch, 4, length, device=DEVICE) for _ in range(3))
    t = torch.randint(1, 999, (args.batch,), device=DEVICE)
    run = compiled(net, args)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, fused=True)
    encode, clips = encoder(args) if args.case.startswith("train") else (None, None)
    mixed = torch.autocast(DEVICE, torch.bfloat16, enabled=args.mode != "eager")

    def denoise():
        with torch.no_grad(), mixed:
            run(x, t, cond)

    def encoded(given):
        with torch.no_grad(), mixed:
            return encode(clips).float() if encode else given

    def step():
        optimizer.zero_grad(set_to_none=True)
        start = encoded(x)
        before = encoded(cond) if args.case == "train-cond" else cond
        with mixed:
            loss = ((run(start + noise, t, before).float() - noise) ** 2).mean()
        loss.backward()
        optimizer.step()

    elapsed = milliseconds(denoise if args.case == "denoise" else step, 11 if ON_GPU else 3)
    return {"milliseconds": elapsed, "batch": args.batch, "mode": args.mode, "torch": torch.__version__,
            "bytes": torch.cuda.max_memory_allocated() if ON_GPU else 0}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("case", choices=["ceilings", "denoise", "step", "train", "train-cond"])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--mode", default="eager", choices=["eager", "bf16", "compile", "max-autotune"])
    parser.add_argument("--width", type=int, default=256)
    args = parser.parse_args()
    if not ON_GPU:
        torch.set_num_threads(1)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    print(json.dumps(ceilings() if args.case == "ceilings" else measured(args)))


main()
