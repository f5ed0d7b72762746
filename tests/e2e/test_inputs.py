"""What bad input gets: one clear error, the right exit status, nothing written, nothing lost."""
import json
import os
import random
import struct

from common import ROOT, PVDMC, Tensors, compiled, run, scratch, write_tensors
from test_golden import UNET, golden
from test_train import TINY

PVDM = os.path.join(ROOT, "models", "pvdm.model")


def test_wrong_model_file():
    folder = scratch("wrong_model")
    path = f"{folder}/wrong.model"
    with open(path, "w", encoding="ascii") as file:
        file.write('import "pvdm.model"\nprogram p(x: latent) -> y = unett(x)\n')
    told = run(PVDMC, path, "-I", f"{ROOT}/models", "-o", f"{folder}/exe", status=1)
    assert "wrong.model:2:" in told and "did you mean" in told and "^~" in told, told
    assert not os.path.exists(f"{folder}/exe")
    told = run(PVDMC, f"{folder}/absent.model", status=1)
    assert "absent.model" in told
    run(PVDMC, "--no-such-flag", status=2)
    run(PVDMC, status=2)


def test_defines():
    told = run(PVDMC, PVDM, "--check", "-D", "chanels=96", status=1)
    assert "did you mean 'channels'" in told and "model_channels" in told, told
    told = run(PVDMC, PVDM, "--check", "-D", "channels=wide", status=1)
    assert "channels" in told, told
    told = run(PVDMC, PVDM, "--check", "-D", "resolution=250", status=1)
    assert "250" in told, told
    told = run(PVDMC, PVDM, "--check", "-D", "planes=\"product\"", status=1)
    assert "planes" in told, told


def test_other_targets_say_what_lacks():
    told = run(PVDMC, PVDM, "--target", "cuda", "-o", "/nonexistent/x", status=3,
               env={"PVDM_NVRTC": "/nonexistent/libnvrtc.so"})
    assert "NVRTC is not where" in told, told
    run(PVDMC, PVDM, "--target", "abacus", status=2)


def test_check_and_dumps():
    run(PVDMC, PVDM, "--check")
    for what in ("ast", "graph", "plan", "c", "dot"):
        told = run(PVDMC, f"{ROOT}/models/pvdm-tiny.model", "--emit", what)
        assert len(told) > 500, what
    assert run(PVDMC, f"{ROOT}/models/pvdm-tiny.model", "--emit", "graph") == \
        run(PVDMC, f"{ROOT}/models/pvdm-tiny.model", "--emit", "graph"), "not deterministic"


def weights_file(folder, change):
    """The golden U-Net's weights with a change made to the dictionary of tensors."""
    source = Tensors(golden("unet_c32.safetensors"))
    tensors = {name[8:]: ("F32", source.shape(name), source.get(name))
               for name in source.names("weights.")}
    change(tensors)
    path = f"{folder}/w.safetensors"
    write_tensors(path, tensors)
    return path


def test_checkpoint_mismatch_lists_all():
    exe, folder = compiled("pvdm.model", *UNET), scratch("mismatch")
    file = golden("unet_c32.safetensors")

    def change(tensors):
        del tensors["out.2.weight"]
        del tensors["mid_attn.qkv.bias"]
        tensors["extra.tensor"] = ("F32", [2], [0, 0])
        tensors["time_embed.0.bias"] = ("F32", [2, 64], tensors["time_embed.0.bias"][2])
    path = weights_file(folder, change)
    told = run(exe, "run", "denoise", "--weights", f"unet={path}", "--in", file,
               "--out", f"{folder}/o", status=1)
    for part in ("out.2.weight", "mid_attn.qkv.bias", "extra.tensor", "time_embed.0.bias",
                 "[2, 64]", "[128]"):
        assert part in told, f"{part} is not told:\n{told}"
    assert not os.path.exists(f"{folder}/o")


def test_prefixes_are_tolerated():
    exe, folder = compiled("pvdm.model", *UNET), scratch("prefixes")
    file = golden("unet_c32.safetensors")
    outs = []
    for prefix in ("", "module.", "diffusion_model.", "module.diffusion_model."):
        def change(tensors, prefix=prefix):
            for name in list(tensors):
                tensors[prefix + name] = tensors.pop(name)
            tensors[prefix + "zeros"] = ("F32", [1], [0])
        path, out = weights_file(folder, change), f"{folder}/o.safetensors"
        run(exe, "run", "denoise", "--weights", f"unet={path}", "--in", file, "--out", out)
        outs.append(Tensors(out).get("eps").tobytes())
    assert len(set(outs)) == 1


def test_hostile_safetensors():
    """Truncated and corrupted files: status 1, one message; never a crash."""
    exe, folder = compiled("pvdm.model", *UNET), scratch("hostile")
    source = golden("ddim_c32.safetensors")
    with open(source, "rb") as file:
        whole = file.read()
    size = struct.unpack("<Q", whole[:8])[0]
    header, path = json.loads(whole[8:8 + size]), f"{folder}/bad.safetensors"
    rng, cases = random.Random(5), []
    for cut in (0, 4, 8, 9, size // 2, size + 8, len(whole) - 1):
        cases.append(whole[:cut])
    cases.append(struct.pack("<Q", 2 ** 63) + whole[8:])
    cases.append(struct.pack("<Q", size + 1) + whole[8:])
    for change in ({"data_offsets": [0, 2 ** 62]}, {"data_offsets": [-8, 8]},
                   {"shape": [2 ** 40, 2 ** 40]},
                   {"shape": [-1]}, {"dtype": "F99"}, {"shape": "x"}, {"data_offsets": [1, 2]}):
        changed = dict(header)
        changed["cond"] = {**header["cond"], **change}
        text = json.dumps(changed).encode()
        cases.append(struct.pack("<Q", len(text)) + text + whole[8 + size:])
    cases.append(struct.pack("<Q", 400000) + b"[" * 400000 + whole[8 + size:])
    for _ in range(20):
        raw = bytearray(whole[:8 + size + 100])
        for _ in range(4):
            raw[rng.randrange(8, 8 + size)] = rng.randrange(256)
        cases.append(bytes(raw))
    for i, raw in enumerate(cases):
        with open(path, "wb") as file:
            file.write(raw)
        told = run(exe, "run", "denoise",
                   "--weights", f"unet={golden('unet_c32.safetensors')}#weights.", "--in", path,
                   "--out", f"{folder}/o", status=1)
        assert "bad.safetensors" in told, f"case {i}: {told}"
        assert not os.path.exists(f"{folder}/o")
    return f"{len(cases)} files"


def test_inputs_by_name_and_shape():
    exe, folder = compiled("pvdm.model", *UNET), scratch("shapes")
    file = golden("unet_c32.safetensors")
    bad = f"{folder}/bad.safetensors"
    write_tensors(bad, {"x": ("F32", [2, 4, 100], [0.0] * 800), "t": ("I64", [2], [1, 2])})
    weights = ["--weights", f"unet={file}#weights."]
    told = run(exe, "run", "denoise_uncond", *weights, "--in", bad,
               "--out", f"{folder}/o", status=1)
    assert "[2, 4, 100]" in told and "2048" in told, told
    told = run(exe, "run", "denoise", *weights, "--in", bad, "--in", f"x={file}:x",
               "--out", f"{folder}/o", status=1)
    assert "cond" in told, told
    told = run(exe, "run", "denoize", *weights, status=1)
    assert "denoise" in told, told
    told = run(exe, "run", "denoise", "--in", file, "--out", f"{folder}/o", status=1)
    assert "unet" in told and "--weights" in told, told
    told = run(exe, "run", "denoise", *weights, "--in", file, "--out", f"{folder}/o",
               "--tap", "unet.mid_atn", status=1)
    assert "unet.mid_attn" in told, told
    run(exe, "fly", status=2)


def test_info_is_json():
    exe = compiled("pvdm.model", *TINY)
    told = json.loads(run(exe, "info", "--json"))
    text = json.dumps(told)
    for name in ("extract", "decode", "reconstruct", "denoise", "ddim_step", "diffusion_loss",
                 "ae", "unet"):
        assert f'"{name}"' in text, name
    memory = {item["what"] for item in told["stages"][-1]["memory"]}
    assert {"parameters", "gradients", "moments", "averages", "activations",
            "data"} <= memory, memory
    for entry in told["programs"] + told["gradients"]:
        for variant in entry["variants"]:
            assert min(variant["packing_fixed"], variant["packing_sample"]) >= 0.95, entry["name"]
    step = next(entry for entry in told["programs"] if entry["name"] == "ddim_step")
    assert step["variants"][0]["table"]["bytes_row"] > 0
    assert "moments" in run(exe, "info")
    run(exe, "--help")
    for command in ("info", "run", "grad", "train", "sample", "reconstruct", "weights"):
        assert "usage" in run(exe, command, "--help").lower(), command
