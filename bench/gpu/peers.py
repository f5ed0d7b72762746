#!/usr/bin/env python3
"""PyTorch on the GPU: the machine's ceilings, and the peers of our programs, timed by events.

usage: python3 bench/gpu/peers.py ceilings
       python3 bench/gpu/peers.py CASE:BATCH... [--mode eager|bf16|compile|max-autotune] [--small]
                                  [--weights INSTANCE=FILE]... [--out DTYPE=FILE]... [--in FILE]

CASE   denoise, step (loss, gradients and fused AdamW from latents), train (that, from a clip that
       the frozen autoencoder encodes), train-cond (two clips), ae (a step of the autoencoder),
       check (denoise's result beside ours)
eager  f32 without TF32   bf16  autocast, channels_last   compile, max-autotune  that, torch.compile
In bf16 attention is cuDNN's where that is faster than what PyTorch takes: an eager denoise is timed
both ways.

Every case prints a line of JSON, `failed` in it where it did not run; the others follow all the
same. Weights are ours; what has none here is drawn. PVDM_PEER_DEVICE=cpu rehearses it, in small.
"""
import argparse
import contextlib
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
CASES = ["check", "denoise", "step", "train", "train-cond", "ae"]
# pack.py's stand-in
SMALL_UNET = {"width": 32, "mult": (1,), "blocks": 1, "heads": 4, "sizes": ((2, 2),) * 3}
SMALL_AE = {"resolution": 16, "frames": 2, "channels": 16, "depth": 1, "heads": 2, "width": 8,
            "mixer": (1, 2, 16)}


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


class Peer:
    """The two networks of one mode, made when a case asks for them, and what their batches are cut
    from."""

    def __init__(self, args):
        import pvdm_torch
        self.torch_side, self.args = pvdm_torch, args
        self.mixed = args.mode != "eager"
        self.weights = dict(text.split("=", 1) for text in args.weights)
        self.net = self.optimizer = self.encode = None
        self.attention = "default"

    def made(self, kind, instance, options):
        with torch.device(DEVICE):
            net = kind(**options)
        if instance in self.weights:
            self.torch_side.load(net, self.torch_side.read_safetensors(self.weights[instance]),
                                 instance + ".")
        net = net.to(DEVICE)
        return net.to(memory_format=torch.channels_last) if self.mixed else net

    def compiled(self, run):
        """Shapes are constants: a batch of another size is compiled anew, not for all sizes."""
        if self.args.mode == "max-autotune":
            return torch.compile(run, mode="max-autotune", dynamic=False)
        return torch.compile(run, dynamic=False) if self.args.mode == "compile" else run

    @contextlib.contextmanager
    def autocast(self):
        """What the forward pass runs under."""
        with torch.autocast(DEVICE, torch.bfloat16, enabled=self.mixed):
            if self.attention == "default":
                yield
            else:
                from torch.nn.attention import SDPBackend, sdpa_kernel
                with sdpa_kernel([SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION,
                                  SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH],
                                 set_priority=True):
                    yield

    def choose_attention(self):
        times = {}
        # the last one stays where the first does not run
        for self.attention in ("cudnn", "default"):
            try:
                times[self.attention] = milliseconds(self.denoise(8, self.net), 5)
            except Exception as error:  # not there, or not for these shapes
                print(f"attention {self.attention}: {type(error).__name__}: {error}"[:300],
                      file=sys.stderr)
        self.attention = min(times, key=times.get, default="default")

    def network(self):
        if self.net is None:
            self.net = self.made(self.torch_side.UNet, "unet",
                                 SMALL_UNET if self.args.small else {})
            self.run = self.compiled(self.net)
            if self.mixed and ON_GPU:
                self.choose_attention()
        return self.run

    def encoded(self, clips):
        if self.encode is None:
            whole = self.made(self.torch_side.Autoencoder, "ae",
                              SMALL_AE if self.args.small else {})
            self.encode = self.compiled(whole.requires_grad_(False).extract)
        with torch.no_grad(), self.autocast():
            return self.encode(clips).float()

    def step(self, case, batch):
        """A training step as a function, and what it reads already on the device."""
        net = self.network()
        if self.optimizer is None:
            self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=1e-4, fused=True)
        start, cond, t = self.latents(batch)
        noise, clips = torch.randn_like(start), self.clips(batch)

        def body():
            self.optimizer.zero_grad(set_to_none=True)
            clean = start if case == "step" else self.encoded(clips)
            before = self.encoded(clips) if case == "train-cond" else cond
            with self.autocast():
                loss = ((net(clean + noise, t, before).float() - noise) ** 2).mean()
            loss.backward()
            self.optimizer.step()
        return body

    def ae_step(self, batch):
        """A training step of the autoencoder, by the difference of pixels alone."""
        net = self.made(self.torch_side.Autoencoder, "ae", SMALL_AE if self.args.small else {})
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, betas=(0.5, 0.9), fused=True)
        run, clips = self.compiled(net), self.clips(batch)

        def body():
            optimizer.zero_grad(set_to_none=True)
            with self.autocast():
                loss = 4 * (run(clips).float() - clips).abs().mean()
            loss.backward()
            optimizer.step()
        return body

    def clips(self, batch):
        frames, side = 16, 256
        if self.args.small:
            frames, side = SMALL_AE["frames"], SMALL_AE["resolution"]
        return torch.rand(batch, 3, frames, side, side, device=DEVICE) * 2 - 1

    def latents(self, batch):
        length = sum(rows * columns for rows, columns in self.net.sizes)
        x, cond = (torch.randn(batch, 4, length, device=DEVICE) for _ in range(2))
        return x, cond, torch.randint(1, 999, (batch,), device=DEVICE)

    def denoise(self, batch, net=None):
        net, given = net or self.network(), self.latents(batch)

        def body():
            with torch.no_grad(), self.autocast():
                net(given[0], given[2], given[1])
        return body

    def measured(self, case, batch):
        if ON_GPU:
            torch.cuda.reset_peak_memory_stats()
        make = {"denoise": self.denoise, "ae": self.ae_step}.get(case)
        body = make(batch) if make else self.step(case, batch)
        start = time.time()
        body()
        first = time.time() - start
        again = once(body) / 1000
        repeat = max(3, min(11, int(8 / again)))  # of slow ones few
        elapsed = milliseconds(body, repeat if ON_GPU else 1, int(again < 1 and ON_GPU))
        return {"milliseconds": elapsed, "first_seconds": round(first, 1),
                "torch": torch.__version__,
                "attention": self.attention,
                "bytes": torch.cuda.max_memory_allocated() if ON_GPU else 0}

    def check(self):
        """How far our results of denoise, from the same weights and inputs, are from this one."""
        given = self.torch_side.read_safetensors(self.args.inputs)
        with torch.no_grad(), self.autocast():
            right = self.network()(*(given[name].to(DEVICE)
                                     for name in ("x", "t", "cond"))).float().cpu()
        errors = {}
        for dtype, path in (text.split("=", 1) for text in self.args.out):
            ours = next(iter(self.torch_side.read_safetensors(path).values()))
            errors[dtype] = ((ours.view_as(right) - right).norm() / right.norm()).item()
        return {"apart": errors}


def what_fits(peer, case, batch):
    """A case at this batch, or at the half, quarter ... that memory holds: `asked` is what it
    should have been."""
    asked = batch
    while True:
        try:
            return {**peer.measured(case, batch), "batch": batch, "asked": asked}
        except torch.OutOfMemoryError:
            if batch == 1:
                raise
            batch //= 2
        if ON_GPU:
            torch.cuda.empty_cache()


def run_case(peer, text):
    case, _, batch = text.partition(":")
    batch = int(batch or 1)
    told = {"case": case, "batch": batch, "mode": peer.args.mode}
    try:
        told.update(peer.check() if case == "check" else what_fits(peer, case, batch))
    # out of memory, a shape that is not compiled: the next case goes on
    except (Exception, SystemExit) as error:
        told["failed"] = f"{type(error).__name__}: {error}"[:600]
    if ON_GPU:
        torch.cuda.empty_cache()
    print(json.dumps(told), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("cases", nargs="+", help=f"ceilings, or of {', '.join(CASES)}")
    parser.add_argument("--mode", default="eager",
                        choices=["eager", "bf16", "compile", "max-autotune"])
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--weights", action="append", default=[])
    parser.add_argument("--in", dest="inputs")
    parser.add_argument("--out", action="append", default=[])
    args = parser.parse_args()
    if not ON_GPU:
        torch.set_num_threads(1)
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    if args.cases == ["ceilings"]:
        print(json.dumps(ceilings()))
        return
    peer = Peer(args)
    for text in args.cases:
        run_case(peer, text)


main()
