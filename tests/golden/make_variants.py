#!/usr/bin/env python3
"""Makes variants.safetensors: variants of the model that the official files do not cover, computed
by the independent PyTorch PVDM of bench/peers (which agrees with the official tensors to 1e-6).

For each: weights under NAME.weights., inputs and outputs NAME.x, NAME.t, NAME.cond, NAME.eps
(U-Net) or NAME.x, NAME.z, NAME.y (autoencoder); for U-Nets also d mean(eps^2) / d x as NAME.grad_x.
"""
import os
import sys

import torch

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "..", "bench", "peers"))
import pvdm_torch as peer  # noqa: E402

PLANES = [[4, 4], [8, 4], [8, 4]]          # resolution 32, patch 8, 8 frames: not square
UNETS = {
    "plain_embedding": {"mult": (1, 2), "blocks": 1, "scale_shift": False},
    "conv_resample": {"mult": (1, 1), "blocks": 1, "updown": False},
    "unconditional": {"mult": (1,), "blocks": 2, "cond_model": False},
    "sparse_attention": {"mult": (1, 1), "blocks": 1, "attention": (2,), "heads": 4},
}


def main():
    torch.manual_seed(0)
    tensors = {}
    for name, flags in UNETS.items():
        net = peer.UNet(32, sizes=PLANES, **flags).double()
        for p in net.parameters():             # rounded to what the file holds
            p.data = p.data.float().double()
        tensors.update({f"{name}.weights.{k}": v.float() for k, v in net.state_dict().items()})
        x = torch.randn(2, 4, 80).double().requires_grad_()
        x.data = x.data.float().double()
        cond = torch.randn(2, 4, 80).float().double()
        t = torch.tensor([7, 801])
        eps = net(x, t, cond)
        (eps ** 2).mean().backward()
        tensors.update({f"{name}.x": x.detach().float(), f"{name}.cond": cond.float(),
                        f"{name}.t": t,
                        f"{name}.eps": eps.detach().float(), f"{name}.grad_x": x.grad.float()})
    for name, flags in {"concat": {"planes": "concat"}, "square": {"embed": 2}}.items():
        net = peer.Autoencoder(32, 8, 8, 32, depth=1, heads=2, width=16, **flags).double()
        for p in net.parameters():
            p.data = p.data.float().double()
        tensors.update({f"{name}.weights.{k}": v.float() for k, v in net.state_dict().items()})
        x = (torch.rand(2, 3, 8, 32, 32) * 2 - 1).float()
        with torch.no_grad():
            z = net.extract(x.double())
            y = net.decode(z)
        tensors.update({f"{name}.x": x, f"{name}.z": z.float(), f"{name}.y": y.float()})
    peer.write_safetensors(os.path.join(HERE, "variants.safetensors"), tensors)


main()
