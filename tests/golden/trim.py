#!/usr/bin/env python3
"""Makes the files of this folder from the full set: sh: python3 trim.py FULL_FOLDER

Kept: what a test that stands alone needs. Dropped: activations, gradients and states of large
tensors (their `gradstat` stays), the second batch item of videos, sampler runs that repeat a case.
"""
import json
import math
import os
import struct
import sys

SIZE = {"F32": 4, "F16": 2, "I64": 8, "F64": 8}


def trim(source, target, keep):
    """keep(name, shape) -> None (drop), or how many batch items of the first axis to keep (0:
    all)."""
    with open(source, "rb") as file:
        length = struct.unpack("<Q", file.read(8))[0]
        header = json.loads(file.read(length))
        data = file.read()
    out, blobs, at = {"__metadata__": header.pop("__metadata__")}, [], 0
    for name, entry in header.items():
        items = keep(name, entry["shape"])
        if items is None:
            continue
        shape = list(entry["shape"])
        if items:
            shape[0] = min(items, shape[0])
        begin = entry["data_offsets"][0]
        raw = data[begin:begin + math.prod(shape) * SIZE[entry["dtype"]]]
        out[name] = {"dtype": entry["dtype"], "shape": shape, "data_offsets": [at, at + len(raw)]}
        blobs.append(raw)
        at += len(raw)
    text = json.dumps(out).encode()
    text += b" " * (-len(text) % 8)
    with open(target, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.writelines(blobs)


def small(limit):
    return lambda shape: math.prod(shape) <= limit


def main():
    full, here = sys.argv[1], os.path.dirname(os.path.abspath(__file__))

    def make(name, keep):
        trim(os.path.join(full, name), os.path.join(here, name), keep)

    make("unet_c32.safetensors", lambda n, s: 0)

    def unet_grad(name, shape):
        if name.startswith(("grad_l2.", "param_step", "ema_step", "adam_")):
            return 0 if small(1024)(shape) else None
        return None if name.startswith("delta_stat") else 0
    make("unet_c32_grad.safetensors", unet_grad)

    def ddim(name, _):
        kept = ("sched.", "ddim_times", "init_noise", "step_noise", "cond", "eta0_cond_w0.x_after",
                "eta1_uncond.x_after.1", "eta1_uncond.x_after.2",
                "eta0_cond_w0.5.x_after.1", "anc_t500")
        return 0 if name.startswith(kept) else None
    make("ddim_c32.safetensors", ddim)

    def autoencoder(name, _):
        if name.startswith(("act.", "enc_h", "decode_from_sample")):
            return None
        return {"x": 1, "latents": 1, "forward": 16}.get(name, 0)
    make("ae_r64_c64.safetensors", autoencoder)

    def lpips(name, _):
        return None if "sine" in name or name == "G.grad_recon_total" else 0
    make("lpips_disc.safetensors", lpips)


main()
