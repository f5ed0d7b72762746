"""PVDM in plain PyTorch, written from the paper and the checkpoints' tensor names: the peer.

Modules carry the names of the published checkpoints, so that the same weights load here and in the
compiled executable. It is meant to be what a careful user would write: no custom kernels,
scaled_dot_product_attention where PyTorch has it, explicit scores where it does not.
"""
import json
import math
import struct

import numpy
import torch
import torch.nn.functional as F
from torch import nn

FUSED_ATTENTION = hasattr(F, "scaled_dot_product_attention")


def attend(q, k, v, scale):
    """softmax(scale q k^T) v over [..., n, d]."""
    if FUSED_ATTENTION:
        return F.scaled_dot_product_attention(q * (scale * q.shape[-1] ** 0.5), k, v)
    return torch.softmax(torch.matmul(q * scale, k.transpose(-1, -2)), dim=-1).matmul(v)


# ---- autoencoder ----

class Normed(nn.Module):
    def __init__(self, dim, fn):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.fn = fn

    def forward(self, x, *args):
        return self.fn(self.norm(x), *args)


class Attention(nn.Module):
    def __init__(self, dim, heads, width):
        super().__init__()
        self.heads, self.width = heads, width
        self.to_qkv = nn.Linear(dim, 3 * heads * width, bias=False)
        self.to_out = nn.Sequential(nn.Linear(heads * width, dim))

    def forward(self, x, rotation=None):                       # [s, n, dim]
        s, n, _ = x.shape
        q, k, v = self.to_qkv(x).view(s, n, 3, self.heads, self.width).permute(2, 0, 3, 1, 4)
        if rotation is not None:
            q, k = rotate(q, *rotation), rotate(k, *rotation)
        y = attend(q, k, v, self.width ** -0.5)
        return self.to_out(y.transpose(1, 2).reshape(s, n, -1))


def rotate(x, cos, sin):
    turned = torch.stack((-x[..., 1::2], x[..., 0::2]), dim=-1).flatten(-2)
    return x * cos + turned * sin


class GatedGelu(nn.Module):
    def forward(self, x):
        value, gate = x.chunk(2, dim=-1)
        return value * F.gelu(gate)


class Net(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.net = nn.Sequential(*layers)

    def forward(self, x):
        return self.net(x)


def frame_angles(count, d):
    turns = 10000.0 ** (-2.0 * torch.arange(d // 2, dtype=torch.float64) / d)
    return (torch.arange(count, dtype=torch.float64)[:, None] * turns.repeat(2)[None]).float()


def grid_angles(rows, columns, d):
    turns = (math.pi * 2.0 ** torch.linspace(0, math.log2(5.0), d // 4, dtype=torch.float64)
             ).repeat_interleave(2)
    y = torch.linspace(-1, 1, rows, dtype=torch.float64)[:, None, None] * turns
    x = torch.linspace(-1, 1, columns, dtype=torch.float64)[None, :, None] * turns
    both = torch.cat((y.expand(rows, columns, -1), x.expand(rows, columns, -1)), dim=-1)
    return both.reshape(rows * columns, d).float()


class TimeSformer(nn.Module):
    def __init__(self, dim, depth, heads, width, t, h, w, d_in=None):
        super().__init__()
        self.t = t
        if d_in is not None:
            self.to_patch_embedding = nn.Linear(d_in, dim)
        self.layers = nn.ModuleList(nn.ModuleList([
            Normed(dim, Attention(dim, heads, width)), Normed(dim, Attention(dim, heads, width)),
            Normed(dim, Net(nn.Linear(dim, 8 * dim), GatedGelu(), nn.Identity(),
                            nn.Linear(4 * dim, dim)))])
            for _ in range(depth))
        frames, field = frame_angles(t, width), grid_angles(h, w, width)
        for name, angles in (("frames", frames), ("field", field)):
            self.register_buffer(name + "_cos", angles.cos(), persistent=False)
            self.register_buffer(name + "_sin", angles.sin(), persistent=False)

    def forward(self, x):                                      # [b, t n, dim]
        if hasattr(self, "to_patch_embedding"):
            x = self.to_patch_embedding(x)
        b, _, c = x.shape
        t = self.t
        for over_time, over_space, mix in self.layers:
            y = x.reshape(b, t, -1, c).transpose(1, 2).reshape(-1, t, c)
            y = over_time(y, (self.frames_cos, self.frames_sin))
            x = x + y.view(b, -1, t, c).transpose(1, 2).reshape(b, -1, c)
            y = over_space(x.reshape(b * t, -1, c), (self.field_cos, self.field_sin))
            x = x + y.view(b, -1, c)
            x = x + mix(x)
        return x


class Transformer(nn.Module):
    def __init__(self, dim, depth, heads, width, hidden):
        super().__init__()
        self.layers = nn.ModuleList(nn.ModuleList([
            Normed(dim, Attention(dim, heads, width)),
            Normed(dim,
                   Net(nn.Linear(dim, hidden), nn.GELU(), nn.Identity(), nn.Linear(hidden, dim)))])
            for _ in range(depth))

    def forward(self, x):
        for mixing, mlp in self.layers:
            x = x + mixing(x)
            x = x + mlp(x)
        return x


class Autoencoder(nn.Module):
    def __init__(self, resolution=256, frames=16, patch=8, channels=384, embed=4, depth=8,
                 heads=8, width=64,
                 planes="sum", mixer=(4, 4, 512)):
        super().__init__()
        self.t, self.g, self.p = frames, resolution // patch, patch
        t, g = frames, self.g
        self.encoder = TimeSformer(channels, depth, heads, width, t, g, g, 3 * patch * patch)
        self.decoder = TimeSformer(channels, depth, heads, width, t, g, g)
        self.to_pixel = nn.Sequential(nn.Identity(),
                                      nn.ConvTranspose2d(channels, 3, patch, stride=patch))
        for plane, n in (("xy", t), ("yt", g), ("xt", g)):
            setattr(self, plane + "_token", nn.Parameter(torch.randn(1, 1, channels)))
            setattr(self, plane + "_pos_embedding", nn.Parameter(torch.randn(1, n + 1, channels)))
            setattr(self, plane + "_quant_attn",
                    Transformer(channels, *mixer[:2], channels // 8, mixer[2]))
            setattr(self, "pre_" + plane, nn.Conv2d(channels, embed, 1))
            if planes == "sum":
                setattr(self, "post_" + plane, nn.Conv2d(embed, channels, 1))
        if planes == "concat":
            self.post = nn.Conv3d(3 * embed, channels, 1)

    def project(self, x, plane):                               # [s, n, c] -> [s, c]
        token = getattr(self, plane + "_token").expand(x.shape[0], -1, -1)
        x = torch.cat((x, token), dim=1) + getattr(self, plane + "_pos_embedding")
        return getattr(self, plane + "_quant_attn")(x)[:, 0]

    def extract(self, x):  # [b, 3, t, H, W] -> [b, embed, tokens]
        b, t, g, p = x.shape[0], self.t, self.g, self.p
        x = x.view(b, 3, t, g, p, g, p).permute(0, 2, 3, 5, 4, 6, 1).reshape(b, t * g * g, -1)
        y = self.encoder(x).reshape(b, t, g, g, -1)
        c = y.shape[-1]
        xy = self.project(y.permute(0, 2, 3, 1, 4).reshape(-1, t, c), "xy").view(b, g, g, c)
        yt = self.project(y.permute(0, 1, 3, 2, 4).reshape(-1, g, c), "yt").view(b, t, g, c)
        xt = self.project(y.reshape(-1, g, c), "xt").view(b, t, g, c)
        planes = [getattr(self, "pre_" + name)(z.permute(0, 3, 1, 2)).flatten(2)
                  for name, z in (("xy", xy), ("yt", yt), ("xt", xt))]
        return torch.tanh(torch.cat(planes, dim=2))

    def decode(self, z):
        b, t, g, p = z.shape[0], self.t, self.g, self.p
        xy, yt, xt = z.split((g * g, t * g, t * g), dim=2)
        xy, yt, xt = xy.view(b, -1, g, g), yt.view(b, -1, t, g), xt.view(b, -1, t, g)
        if hasattr(self, "post"):
            whole = (-1, -1, t, g, g)
            y = self.post(torch.cat((xy[:, :, None].expand(whole), yt[:, :, :, None].expand(whole),
                                     xt[..., None].expand(whole)), dim=1))
        else:
            y = (self.post_xy(xy)[:, :, None] + self.post_yt(yt)[:, :, :, None]
                 + self.post_xt(xt)[..., None])
        y = self.decoder(y.permute(0, 2, 3, 4, 1).reshape(b, t * g * g, -1))
        y = self.to_pixel(y.reshape(b * t, g, g, -1).permute(0, 3, 1, 2))
        return (2 * torch.sigmoid(y) - 1).view(b, t, 3, g * p, g * p).transpose(1, 2)

    def forward(self, x):
        return self.decode(self.extract(x))


# ---- U-Net ----

class ResBlock(nn.Module):
    def __init__(self, c_in, c_out, c_emb, resample=None, scale_shift=True):
        super().__init__()
        self.resample, self.scale_shift = resample, scale_shift
        self.in_layers = nn.Sequential(nn.GroupNorm(32, c_in), nn.SiLU(),
                                       nn.Conv2d(c_in, c_out, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(),
                                        nn.Linear(c_emb, (2 if scale_shift else 1) * c_out))
        self.out_layers = nn.Sequential(nn.GroupNorm(32, c_out), nn.SiLU(), nn.Identity(),
                                        nn.Conv2d(c_out, c_out, 3, padding=1))
        self.skip_connection = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)

    def forward(self, x, emb):
        y = self.in_layers[1](self.in_layers[0](x))
        if self.resample is not None:
            x, y = self.resample(x), self.resample(y)
        y = self.in_layers[2](y)
        e = self.emb_layers(emb)[:, :, None, None]
        if self.scale_shift:
            scale, shift = e.chunk(2, dim=1)
            y = self.out_layers[1:](self.out_layers[0](y) * (1 + scale) + shift)
        else:
            y = self.out_layers(y + e)
        return self.skip_connection(x) + y


class AttentionBlock(nn.Module):
    def __init__(self, c, heads):
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(32, c)
        self.qkv = nn.Conv1d(c, 3 * c, 1)
        self.proj_out = nn.Conv1d(c, c, 1)

    def forward(self, x, _=None):
        b, c, n = x.shape[0], x.shape[1], x[0, 0].numel()
        qkv = self.qkv(self.norm(x).view(b, c, n)).view(b, self.heads, 3, c // self.heads, n)
        q, k, v = (part.transpose(-1, -2) for part in qkv.unbind(2))
        y = attend(q, k, v, (c // self.heads) ** -0.5)
        return x + self.proj_out(y.transpose(-1, -2).reshape(b, c, n)).view_as(x)


class Stage(nn.ModuleList):
    def forward(self, x, emb):
        for layer in self:
            x = layer(x, emb) if isinstance(layer, (ResBlock, AttentionBlock)) else layer(x)
        return x


class Downsample(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.op = nn.Conv2d(c, c, 3, stride=2, padding=1)

    def forward(self, x):
        return self.op(x)


class Upsample(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.conv = nn.Conv2d(c, c, 3, padding=1)

    def forward(self, x):
        return self.conv(grow(x))


def shrink(x):
    return F.avg_pool2d(x, 2)


def grow(x):
    return F.interpolate(x, scale_factor=2, mode="nearest")


class UNet(nn.Module):
    def __init__(self, width=256, mult=(1, 2, 4, 4), blocks=2, attention=(4, 2, 1),
                 heads=8, embed=4,
                 sizes=((32, 32), (16, 32), (16, 32)), scale_shift=True, updown=True,
                 cond_model=True):
        super().__init__()
        self.width, self.sizes, self.cond_model = width, sizes, cond_model
        c_emb = 4 * width

        def residual(c_in, c_out, resample=None):
            return ResBlock(c_in, c_out, c_emb, resample, scale_shift)

        self.time_embed = nn.Sequential(nn.Linear(width, c_emb), nn.SiLU(), nn.Linear(c_emb, c_emb))
        self.input_blocks = nn.ModuleList(
            [Stage([nn.Conv2d((2 if cond_model else 1) * embed, width, 3, padding=1)])])
        self.input_attns = nn.ModuleList([nn.Identity()])
        ch, skips = width, [width]
        for level, factor in enumerate(mult):
            c = factor * width
            for _ in range(blocks):
                inside = [AttentionBlock(c, heads)] if 2 ** level in attention else []
                self.input_blocks.append(Stage([residual(ch, c)] + inside))
                self.input_attns.append(AttentionBlock(c, heads))
                skips.append(c)
                ch = c
            if level + 1 < len(mult):
                self.input_blocks.append(
                    Stage([residual(ch, ch, shrink) if updown else Downsample(ch)]))
                self.input_attns.append(AttentionBlock(ch, heads))
                skips.append(ch)
        self.middle_block = Stage([residual(ch, ch), AttentionBlock(ch, heads), residual(ch, ch)])
        self.mid_attn = AttentionBlock(ch, heads)
        self.output_blocks, self.output_attns = nn.ModuleList(), nn.ModuleList()
        for level, factor in reversed(list(enumerate(mult))):
            c = factor * width
            for i in range(blocks + 1):
                layers = [residual(ch + skips.pop(), c)]
                if 2 ** level in attention:
                    layers.append(AttentionBlock(c, heads))
                if level and i == blocks:
                    layers.append(residual(c, c, grow) if updown else Upsample(c))
                self.output_blocks.append(Stage(layers))
                self.output_attns.append(AttentionBlock(c, heads))
                ch = c
        self.out = nn.Sequential(nn.GroupNorm(32, ch), nn.SiLU(),
                                 nn.Conv2d(ch, embed, 3, padding=1))

    def forward(self, x, t, cond=None):
        half = self.width // 2
        places = torch.arange(half, dtype=torch.float32, device=t.device)
        frequency = torch.exp(-math.log(10000) * places / half)
        angle = t.float()[:, None] * frequency[None]
        emb = self.time_embed(torch.cat((angle.cos(), angle.sin()), dim=1).to(x.dtype))
        if self.cond_model:
            x = torch.cat((x, torch.zeros_like(x) if cond is None else cond), dim=1)
        b = x.shape[0]
        planes = [part.view(b, -1, h, w) for part, (h, w) in
                  zip(x.split([h * w for h, w in self.sizes], dim=2), self.sizes)]
        saved = []
        for stage, attn in zip(self.input_blocks, self.input_attns):
            planes = jointly(attn, [stage(p, emb) for p in planes])
            saved.append(planes)
        planes = jointly(self.mid_attn, [self.middle_block(p, emb) for p in planes])
        for stage, attn in zip(self.output_blocks, self.output_attns):
            planes = [torch.cat((p, s), dim=1) for p, s in zip(planes, saved.pop())]
            planes = jointly(attn, [stage(p, emb) for p in planes])
        return torch.cat([self.out(p).flatten(2) for p in planes], dim=2)


def jointly(attn, planes):
    whole = attn(torch.cat([p.flatten(2) for p in planes], dim=2))
    return [part.view_as(p)
            for part, p in zip(whole.split([p[0, 0].numel() for p in planes], dim=2), planes)]


# ---- weights ----

TYPES = {"F32": "<f4", "F16": "<f2", "I64": "<i8", "F64": "<f8"}


def read_safetensors(path, prefix=""):
    """{name: tensor} of the names under prefix, floats as f32; one tensor at a time is in memory
    twice."""
    with open(path, "rb") as file:
        size = struct.unpack("<Q", file.read(8))[0]
        header = json.loads(file.read(size))
        tensors = {}
        for name, entry in header.items():
            if name == "__metadata__" or not name.startswith(prefix) or entry["dtype"] not in TYPES:
                continue
            begin, end = entry["data_offsets"]
            file.seek(8 + size + begin)
            values = numpy.frombuffer(file.read(end - begin), dtype=TYPES[entry["dtype"]])
            values = values.reshape(entry["shape"])
            dtype = "f4" if values.dtype.kind == "f" else "i8"
            tensors[name] = torch.from_numpy(values.astype(dtype))
    return tensors


def write_safetensors(path, tensors):
    """{name: tensor of f32 or i64}"""
    header, blobs, at = {}, [], 0
    for name, tensor in tensors.items():
        raw = tensor.detach().contiguous().numpy().tobytes()
        header[name] = {"dtype": "I64" if tensor.dtype == torch.int64 else "F32",
                        "shape": list(tensor.shape), "data_offsets": [at, at + len(raw)]}
        blobs.append(raw)
        at += len(raw)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.writelines(blobs)


def load(module, tensors, prefix):
    """Loads the tensors under `prefix`; every parameter must be there."""
    state = {name[len(prefix):]: tensor for name, tensor in tensors.items()
             if name.startswith(prefix)}
    missing, _ = module.load_state_dict(state, strict=False)
    if missing:
        raise SystemExit(f"weights lack {len(missing)} tensors, the first: {missing[0]}")
    return module
