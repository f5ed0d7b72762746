"""Overrides: variants by -D against an independent implementation (golden/make_variants.py)."""
import os

from common import GOLDEN, Tensors, check_close, compiled, run, scratch

FILE = os.path.join(GOLDEN, "variants.safetensors")
SMALL = ["-D", "resolution=32", "-D", "frames=8", "-D", "channels=32", "-D", "ae_depth=1",
         "-D", "ae_heads=2", "-D", "ae_dim_head=16", "-D", "model_channels=32",
         "-D", "num_res_blocks=1"]
UNETS = {
    "plain_embedding": ["channel_mult=[1,2]", "use_scale_shift_norm=false"],
    "conv_resample": ["channel_mult=[1,1]", "resblock_updown=false"],
    "unconditional": ["channel_mult=[1]", "num_res_blocks=2", "cond_model=false"],
    "sparse_attention": ["channel_mult=[1,1]", "attention_resolutions=[2]", "num_heads=4"],
}


def defines(items):
    return [flag for item in items for flag in ("-D", item)]


def check_unet(name):
    exe, folder = compiled("pvdm.model", *SMALL, *defines(UNETS[name])), scratch(name)
    out, want = f"{folder}/o.safetensors", Tensors(FILE)
    run(exe, "run", "denoise", "--weights", f"unet={FILE}#{name}.weights.", "--out", out,
        *(flag for n in ("x", "cond", "t") for flag in ("--in", f"{n}={FILE}:{name}.{n}")))
    return f"{check_close(Tensors(out).get('eps'), want.get(f'{name}.eps'), 1e-5, name):.1e}"


def test_plain_embedding():
    return check_unet("plain_embedding")


def test_conv_resample():
    return check_unet("conv_resample")


def test_unconditional():
    return check_unet("unconditional")


def test_sparse_attention():
    return check_unet("sparse_attention")


def check_autoencoder(name, *more):
    exe = compiled("pvdm.model", *SMALL, "-D", "channel_mult=[1]", *defines(more))
    folder = scratch(name)
    out, want, errors = f"{folder}/o.safetensors", Tensors(FILE), []
    weights = ["--weights", f"ae={FILE}#{name}.weights."]
    run(exe, "run", "extract", *weights, "--in", f"x={FILE}:{name}.x", "--out", out)
    errors.append(check_close(Tensors(out).get("z"), want.get(f"{name}.z"), 1e-5, "z"))
    run(exe, "run", "reconstruct", *weights, "--in", f"x={FILE}:{name}.x", "--out", out)
    errors.append(check_close(Tensors(out).get("y"), want.get(f"{name}.y"), 1e-5, "y"))
    return f"{max(errors):.1e}"


def test_planes_concat():
    return check_autoencoder("concat", 'planes="concat"')


def test_embed_dim():
    return check_autoencoder("square", "embed_dim=2")


def test_double_precision():
    """The same numbers in f64, to the precision of the stored f32 tensors."""
    exe = compiled("pvdm.model", *SMALL, *defines(UNETS["plain_embedding"]), "--dtype", "f64")
    folder = scratch("double")
    out, want = f"{folder}/o.safetensors", Tensors(FILE)
    run(exe, "run", "denoise", "--weights", f"unet={FILE}#plain_embedding.weights.", "--out", out,
        *(flag for n in ("x", "cond", "t") for flag in ("--in", f"{n}={FILE}:plain_embedding.{n}")))
    error = check_close(Tensors(out).get("eps"), want.get("plain_embedding.eps"), 1e-6, "eps")
    return f"{error:.1e}"
