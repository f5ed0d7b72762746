#!/usr/bin/env python3
"""PyTorch on the GPU: the machine's ceilings, and the peer's U-Net, timed by events.

usage: python3 bench/gpu/peers.py ceilings
       python3 bench/gpu/peers.py denoise|step [--batch N] [--mode eager|bf16|compile] [--width 256]

eager    f32 without TF32       bf16     autocast, channels_last       compile  bf16, max-autotune
The last line is JSON. A step is loss, gradients and AdamW (fused).
"""
import argparse
import json
import os
import statistics
import sys

import torch

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(HERE), "peers"))


def milliseconds(body, repeat, warm=3):
    """Median time of body() on the device."""
    for _ in range(warm):
        body()
    times = []
    for _ in range(repeat):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        body()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times)


def ceilings():
    x = torch.empty(1 << 29, device="cuda", dtype=torch.float32).normal_()
    y = torch.empty_like(x)
    told = {"copy_gbps": 2 * x.numel() * 4 / milliseconds(lambda: y.copy_(x), 10) / 1e6}
    del x, y
    for name, dtype in (("f32", torch.float32), ("bf16", torch.bfloat16)):
        a, b = (torch.randn(8192, 8192, device="cuda", dtype=dtype) for _ in range(2))
        told[f"{name}_tflops"] = 2 * 8192 ** 3 / milliseconds(lambda: a @ b, 5) / 1e9
    return told


def network(args):
    import pvdm_torch as peer
    torch.manual_seed(0)
    if args.width == 256:
        net = peer.UNet(256)
    else:
        net = peer.UNet(args.width, mult=(1, 2), blocks=1, heads=4, sizes=((8, 8), (8, 8), (8, 8)))
    net = net.cuda()
    return net.to(memory_format=torch.channels_last) if args.mode != "eager" else net


def measured(args):
    net = network(args)
    length = sum(rows * columns for rows, columns in net.sizes)
    x, cond, noise = (torch.randn(args.batch, 4, length, device="cuda") for _ in range(3))
    t = torch.randint(1, 999, (args.batch,), device="cuda")
    run = torch.compile(net, mode="max-autotune-no-cudagraphs") if args.mode == "compile" else net
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, fused=True)

    def denoise():
        with torch.no_grad(), torch.autocast("cuda", torch.bfloat16, enabled=args.mode != "eager"):
            run(x, t, cond)

    def step():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16, enabled=args.mode != "eager"):
            loss = ((run(x, t, cond).float() - noise) ** 2).mean()
        loss.backward()
        optimizer.step()

    time = milliseconds(denoise if args.case == "denoise" else step, 11)
    return {"milliseconds": time, "batch": args.batch, "mode": args.mode, "torch": torch.__version__,
            "bytes": torch.cuda.max_memory_allocated()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("case", choices=["ceilings", "denoise", "step"])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--mode", default="eager", choices=["eager", "bf16", "compile"])
    parser.add_argument("--width", type=int, default=256)
    args = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    print(json.dumps(ceilings() if args.case == "ceilings" else measured(args)))


main()
