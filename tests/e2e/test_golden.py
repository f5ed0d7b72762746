"""The numbers of the official code: golden tensors through compiled executables.

Bounds: 1e-5 relative L2 for outputs, 1e-4 for gradients; 3e-4 for the norm and qkv biases of two
blocks whose gradients nearly cancel (golden/README.md). Elements whose true gradient is zero are
rounding noise in the reference too, and are masked by |grad| > 1e-6.
"""
import array
import os
import re

from common import (FULL_GOLDEN, GOLDEN, Skip, Tensors, check_close, compiled, norm,
                    permute, relative_error, run, scratch, statistics, write_tensors)

UNET = ["-D", "model_channels=32", "-D", "channel_mult=[1,2]", "-D", "num_res_blocks=1"]
AE = ["-D", "resolution=64", "-D", "channels=64"]
LOOSE = re.compile(r"(output_blocks\.3\.1|output_attns\.3)\.(norm|qkv)\.bias$")


def golden(name):
    """The whole file if it is there, else the part of it that the project carries."""
    for folder in (FULL_GOLDEN, GOLDEN):
        path = os.path.join(folder, name)
        if os.path.exists(path):
            return path
    raise Skip(f"{name} is not there")


def part(tensors, name, have):
    """Values of `have` (all items) cut to the batch items that the reference holds."""
    return have[:len(tensors.get(name))]


# ---- U-Net ----

def unet_forward(*flags):
    """The worst error of an executable that is compiled with these flags."""
    exe, folder = compiled("pvdm.model", *UNET, *flags), scratch("unet" + "".join(flags))
    file = golden("unet_c32.safetensors")
    want, worst = Tensors(file), 0.0
    for program, tensor in (("denoise", "out_cond"), ("denoise_uncond", "out_uncond")):
        out = f"{folder}/{program}.safetensors"
        run(exe, "run", program, "--weights", f"unet={file}#weights.", "--in", file, "--out", out)
        worst = max(worst, check_close(Tensors(out).get("eps"), want.get(tensor), 1e-5, tensor))
    return worst


def test_unet_forward():
    return f"worst {unet_forward():.1e}"


def test_unet_taps():
    """Every stored activation: outputs of blocks (planes apart, joined here) and of attentions."""
    exe, folder = compiled("pvdm.model", *UNET), scratch("taps")
    file = golden("unet_c32.safetensors")
    want, out, worst = Tensors(file), f"{folder}/taps.safetensors", 0.0
    names = [name for name in want.names("act.") if name != "act.emb"]
    if not names:
        raise Skip("the file carries no activations")
    run(exe, "run", "denoise", "--weights", f"unet={file}#weights.", "--in", file, "--out", out,
        "--tap", "all")
    have = Tensors(out)
    for name in names:
        path = "unet." + name[4:]
        if "blocks" in name or name == "act.middle_block":     # three planes, one call each
            shapes = [have.shape(path + suffix) for suffix in ("", "#2", "#3")]
            planes = [have.get(path + suffix) for suffix in ("", "#2", "#3")]
            joined = array.array("f")
            for c in range(shapes[0][1]):
                for shape, plane in zip(shapes, planes):
                    n = shape[2] * shape[3]
                    joined += plane[c * n:(c + 1) * n]
        else:
            # attention runs on the packed planes: [b, c, n]
            joined = have.get(path)
        worst = max(worst, check_close(part(want, name, joined), want.get(name), 1e-5, name))
    worst = max(worst, check_close(have.get("unet.emb"), want.get("act.emb"), 1e-5, "act.emb"))
    worst = max(worst,
                check_close(have.get("timestep_embedding"), want.get("t_emb"), 1e-5, "t_emb"))
    return f"{len(names) + 2} tensors, worst {worst:.1e}"


def masked(have, want):
    pairs = [(h, w) for h, w in zip(have, want) if abs(w) > 1e-6]
    return [h for h, _ in pairs], [w for _, w in pairs]


def check_gradients(have, want, names):
    """Pairs of names (wanted, ours), full tensors, masked; returns the worst error and the number
    of tensors."""
    worst, count = 0.0, 0
    for name in names:
        values, full = masked(have.get(name[1]), want.get(name[0]))
        if not full:
            continue
        bound = 3e-4 if LOOSE.search(name[0]) else 1e-4
        error = check_close(values, full, bound, name[0])
        worst, count = max(worst, error if bound == 1e-4 else 0), count + 1
    return worst, count


def check_statistics(have, want, bound, what):
    """gradstat: the norm, the mean against the norm, and the samples where they are not noise."""
    got = statistics(have)
    if want[0] < 1e-6 * len(have) ** 0.5:
        return 0.0                                  # all of it is noise
    assert abs(got[0] - want[0]) <= bound * want[0], f"{what}: norm {got[0]}, not {want[0]}"
    size = want[0] / len(have) ** 0.5               # root mean square
    assert abs(got[1] - want[1]) <= bound * max(size, abs(want[1])), f"{what}: mean"
    pairs = [(g, w) for g, w in zip(got[2:], want[2:]) if abs(w) > 1e-6]
    if not pairs:
        return 0.0
    error = relative_error([g for g, _ in pairs], [w for _, w in pairs])
    assert error <= 3 * bound, f"{what}: samples {error:.3e}"
    return error


def unet_gradients(loss, *flags):
    """The loss and the gradients of all parameters; tells how far off they are."""
    folder = scratch(f"unet_grad_{loss}" + "".join(flags))
    weights, file = golden("unet_c32.safetensors"), golden("unet_c32_grad.safetensors")
    want, out = Tensors(file), f"{folder}/{loss}.safetensors"
    exe = compiled("pvdm.model", *UNET, "-D", f"loss_type={loss}", *flags)
    run(exe, "grad", "diffusion_loss", "--weights", f"unet={weights}#weights.", "--in", file,
        "--in", f"t={file}:t.0", "--in", f"noise={file}:noise.0", "--out", out)
    have = Tensors(out)
    check_close(have.get("loss"), want.get(f"loss_{loss}"), 1e-5, f"loss_{loss}")
    stats = want.names(f"gradstat_{loss}.")
    worst = 0.0
    for name in stats:
        path = name.split(".", 1)[1]
        bound = 3e-4 if LOOSE.search(name) else 1e-4
        error = check_statistics(have.get("grad.unet." + path), want.get(name), bound, name)
        worst = max(worst, 0 if LOOSE.search(name) else error)
    told = f"{loss}: {len(stats)} statistics, worst {worst:.1e}"
    names = [(n, "grad.unet." + n[len(f"grad_{loss}."):]) for n in want.names(f"grad_{loss}.")]
    worst, count = check_gradients(have, want, names)
    return f"{told}; {count} full, worst {worst:.1e}" if count else told


def test_unet_gradients():
    return "; ".join(unet_gradients(loss) for loss in ("l2", "l1"))


def test_unet_x_noisy():
    exe, folder = compiled("pvdm.model", *UNET), scratch("x_noisy")
    weights, file = golden("unet_c32.safetensors"), golden("unet_c32_grad.safetensors")
    out = f"{folder}/o.safetensors"
    run(exe, "run", "diffusion_loss", "--weights", f"unet={weights}#weights.", "--in", file,
        "--in", f"t={file}:t.0", "--in", f"noise={file}:noise.0", "--out", out,
        "--tap", "noise_loss.x")
    error = check_close(Tensors(out).get("noise_loss.x"), Tensors(file).get("x_noisy"),
                        1e-5, "x_noisy")
    return f"{error:.1e}"


def test_adamw_and_ema():
    """Three steps on given batches: parameters, moments, EMA."""
    exe, folder = compiled("pvdm.model", *UNET), scratch("adamw")
    weights, file = golden("unet_c32.safetensors"), golden("unet_c32_grad.safetensors")
    want, initial = Tensors(file), Tensors(weights)
    states = {}
    for steps in (1, 3):
        out = f"{folder}/state{steps}.safetensors"
        run(exe, "train", "diffusion", "--weights", f"unet={weights}#weights.", "--replay", file,
            "--steps", steps, "--state", out, "--set", "ema_every=1")
        states[steps] = Tensors(out)
    check_close(states[3].get("loss"), want.get("losses_train"), 1e-5, "losses")
    worst, count = 0.0, 0
    groups = [("param_step1.", states[1], "unet."), ("param_step3.", states[3], "unet."),
              ("ema_step3.", states[3], "ema.unet."), ("adam_m_step3.", states[3], "adam_m.unet."),
              ("adam_v_step3.", states[3], "adam_v.unet.")]
    for prefix, state, mine in groups:
        for name in want.names(prefix):
            path = name[len(prefix):]
            values, full = state.get(mine + path), want.get(name)
            gradient = want.get("grad_l2." + path) if "grad_l2." + path in want else None
            if gradient is None:
                continue
            keep = [i for i, g in enumerate(gradient) if abs(g) > 1e-6]
            if not keep:
                continue
            if prefix.startswith("adam"):
                error = relative_error([values[i] for i in keep], [full[i] for i in keep])
                assert error <= 1e-4, f"{name}: {error:.3e}"
            else:
                error = max(abs(values[i] - full[i]) for i in keep)
                assert error <= 2e-6, f"{name}: {error:.3e} absolute"
                moved = initial.get("weights." + path)
                assert any(full[i] != moved[i] for i in keep), f"{name}: did not move"
                worst = max(worst, error)
            count += 1
    assert count > 100 or not os.path.exists(os.path.join(FULL_GOLDEN, "unet_c32_grad.safetensors"))
    return f"{count} tensors, worst {worst:.1e} absolute"


# ---- samplers ----

def test_sampler_steps():
    """Each stored step from the stored state before it, by the programs ddim_step and ddpm_step."""
    exe, folder = compiled("pvdm.model", *UNET), scratch("steps")
    weights, file = golden("unet_c32.safetensors"), golden("ddim_c32.safetensors")
    want, worst, count = Tensors(file), 0.0, 0
    times = want.get("ddim_times")
    runs = [("eta0_cond_w0", "0", "0", True), ("eta1_cond_w0", "1", "0", True),
            ("eta0_uncond", "0", "0", False), ("eta1_uncond", "1", "0", False),
            ("eta0_cond_w0.5", "0", "0.5", True)]
    out = f"{folder}/o.safetensors"

    def step(program, sets, inputs, cond, expected):
        nonlocal worst, count
        if expected not in want:
            return
        args = [f"{name}={file}:{tensor}" for name, tensor in inputs.items() if tensor in want]
        if len(args) < len(inputs):                    # the last step draws no noise: any will do
            args.append(f"noise={file}:init_noise")
        if cond:
            args.append(f"cond={file}:cond")
        run(exe, "run", program, "--weights", f"unet={weights}#weights.", "--out", out,
            *(flag for arg in args for flag in ("--in", arg)),
            *(flag for item in sets for flag in ("--set", item)))
        worst = max(worst,
                    check_close(Tensors(out).get("x_next"), want.get(expected), 1e-5, expected))
        count += 1

    for name, eta, guidance, cond in runs:
        for i in range(5):
            before = "init_noise" if i == 0 else f"{name}.x_after.{i}"
            step("ddim_step",
                 [f"eta={eta}", f"guidance={guidance}", f"t={times[i]}", f"t_next={times[i + 1]}"],
                 {"x": before, "noise": f"step_noise.{i}"}, cond, f"{name}.x_after.{i + 1}")
    for start in ("anc_t999", "anc_t500", "anc_t1"):
        if f"{start}.times" not in want:
            continue
        for kind in ("cond", "uncond"):
            for i, t in enumerate(want.get(f"{start}.times")):
                before = f"{start}.x_init" if i == 0 else f"{start}_{kind}.x_after.{i}"
                step("ddpm_step", ["guidance=0", f"t={t}", f"t_next={t - 1}"],
                     {"x": before, "noise": f"{start}.noise.{i}"}, kind == "cond",
                     f"{start}_{kind}.x_after.{i + 1}")
    assert count >= 8
    return f"{count} steps, worst {worst:.1e}"


def test_sampler_trace():
    """A whole DDIM run with given noise; the untrained net amplifies rounding along it."""
    # The decoder is not what is tested: a small autoencoder with the latent of the golden file.
    exe = compiled("pvdm.model", *UNET, "-D", "channels=32", "-D", "ae_depth=1")
    folder, weights = scratch("trace"), golden("unet_c32.safetensors")
    file = golden("ddim_c32.safetensors")
    want = Tensors(file)
    ae = f"{folder}/ae.safetensors"
    run(exe, "weights", "init", "--instance", "ae", "-o", ae)
    trace = f"{folder}/trace.safetensors"
    run(exe, "sample", "--weights", f"unet={weights}#weights.", "--weights", ae, "--steps", "5,5",
        "--batch", 2,
        "--eta", "0", "--noise", file, "--trace", trace)
    have, errors = Tensors(trace), []
    for i in range(1, 6):
        name = f"eta0_cond_w0.x_after.{i}"
        if name in want:
            errors.append(check_close(have.get(f"x_after.{i}"), want.get(name), 2e-4, name))
    assert errors and errors[0] <= 1e-5
    return "errors " + " ".join(f"{e:.1e}" for e in errors)


# ---- autoencoder ----

def autoencoder(*flags, encoder=True):
    """The worst error of what it gives; encoder: and of what is inside, a tap."""
    exe, folder = compiled("pvdm.model", *AE, *flags), scratch("ae" + "".join(flags))
    file = golden("ae_r64_c64.safetensors")
    want, told = Tensors(file), []

    def program(name, *flags):
        out = f"{folder}/{name}.safetensors"
        run(exe, "run", name, "--weights", f"ae={file}#weights.", "--out", out, *flags)
        return Tensors(out)

    out = program("extract", "--in", file, *(("--tap", "ae.encoder") if encoder else ()))
    told.append(check_close(out.get("z"), want.get("latents"), 1e-5, "latents"))
    if encoder and "enc_h" in want:
        told.append(check_close(out.get("ae.encoder"), want.get("enc_h"), 1e-5, "enc_h"))
    out = program("reconstruct", "--in", file)
    shape = out.shape("y")
    told.append(check_close(permute(out.get("y"), shape, [0, 2, 1, 3, 4]), want.get("forward"),
                            1e-5, "forward"))
    if "decode_from_sample" in want:
        out = program("decode", "--in", f"z={file}:latents")
        frames = permute(out.get("x"), shape, [0, 2, 1, 3, 4])
        told.append(check_close(part(want, "decode_from_sample", frames),
                                want.get("decode_from_sample"),
                                1e-5, "decode_from_sample"))
    return max(told)


def test_autoencoder():
    return f"worst {autoencoder():.1e}"


def test_autoencoder_taps():
    exe, folder = compiled("pvdm.model", *AE), scratch("ae_taps")
    file = golden("ae_r64_c64.safetensors")
    want = Tensors(file)
    if "act.enc.patch_embed" not in want:
        raise Skip("the file carries no activations")
    out = f"{folder}/o.safetensors"
    run(exe, "run", "reconstruct", "--weights", f"ae={file}#weights.", "--in", file, "--out", out,
        "--tap", "all")
    have = Tensors(out)
    paths = {"act.enc.patch_embed": "ae.encoder.to_patch_embedding",
             "act.pre_xy": "ae.pre_xy", "act.pre_yt": "ae.pre_yt", "act.pre_xt": "ae.pre_xt",
             "act.xy_quant_attn_tok0": "ae.xy_quant_attn",
             "act.yt_quant_attn_tok0": "ae.yt_quant_attn",
             "act.xt_quant_attn_tok0": "ae.xt_quant_attn",
             "act.dec_out": "ae.decoder", "act.enc.layer0.ff_out": "ae.encoder.layers.0.2",
             "act.enc.layer0.time_attn_out": "ae.encoder.layers.0.0",
             "act.enc.layer0.spatial_attn_out": "ae.encoder.layers.0.1"}
    worst = 0.0
    for name, path in paths.items():
        values, full = have.get(path), want.get(name)
        shape, wanted = have.shape(path), want.shape(name)
        if "tok0" in name:                            # position 0 of each sequence
            n, c = shape[1], shape[2]
            values = array.array("f", [v for s in range(wanted[0])
                                       for v in values[s * n * c:s * n * c + c]])
        elif name == "act.enc.layer0.time_attn_out":  # [(b n), f, d] here, [b, (f n), d] there
            values = permute(values, [2, 64, 16, shape[2]], [0, 2, 1, 3])
        worst = max(worst, check_close(values[:len(full)], full, 1e-5, name))
    pixels, full = have.get("ae.to_pixel"), want.get("act.to_pixel_presigmoid")
    worst = max(worst, check_close(pixels[:len(full)], full, 1e-5, "to_pixel_presigmoid"))
    return f"{len(paths) + 1} tensors, worst {worst:.1e}"


def autoencoder_gradients(*flags):
    exe, folder = compiled("pvdm.model", *AE, *flags), scratch("ae_grad" + "".join(flags))
    file, grads = golden("ae_r64_c64.safetensors"), golden("ae_r64_c64_grad.safetensors")
    want, out = Tensors(grads), f"{folder}/o.safetensors"
    run(exe, "grad", "reconstruction_loss", "--weights", f"ae={file}#weights.", "--in", file,
        "--out", out)
    have = Tensors(out)
    check_close(have.get("loss"), want.get("loss"), 1e-5, "loss")
    worst = 0.0
    stats = want.names("gradstat.")
    for name in stats:
        worst = max(worst,
                    check_statistics(have.get("grad.ae." + name[9:]), want.get(name), 1e-4, name))
    names = [(n, "grad.ae." + n[5:]) for n in want.names("grad.")]
    error, count = check_gradients(have, want, names)
    told = [f"{len(stats)} statistics, worst {worst:.1e}", f"{count} full, worst {error:.1e}"]
    if "grad_x" in want:
        full = want.get("grad_x")
        told.append(
            f"grad_x {check_close(have.get('grad.x')[:len(full)], full, 1e-4, 'grad_x'):.1e}")
    return "; ".join(told)


def test_autoencoder_gradients():
    return autoencoder_gradients()


# ---- tables of the schedule and of the rotary embedding ----

TABLES = """
import "pvdm.model"
program tables(one: f32[b]) -> betas, alphas, signal_table, spread_table, unscale_table,
                              unnoise_table, clean_table, noisy_table, frame_cos, frame_sin,
                              grid_cos, grid_sin {
    frame = rearrange(frame_angles(16, 64), "n d -> 1 n d")
    field = rearrange(grid_angles(8, 8, 64), "n d -> 1 n d")
    return f32(beta), f32(alpha_bar), f32(signal), f32(spread), f32(unscale), f32(unnoise),
           f32(mean_clean), f32(mean_noisy), cos(frame), sin(frame), cos(field), sin(field)
}
"""


def test_tables():
    folder = scratch("tables")
    path = f"{folder}/tables.model"
    with open(path, "w", encoding="ascii") as file:
        file.write(TABLES)
    write_tensors(f"{folder}/one.safetensors", {"one": ("F32", [1], [0.0])})
    exe = compiled(path, "-I", os.path.join(os.path.dirname(GOLDEN), "..", "models"), *AE)
    out = f"{folder}/o.safetensors"
    run(exe, "run", "tables", "--in", f"{folder}/one.safetensors", "--out", out)
    have, schedule = Tensors(out), Tensors(golden("ddim_c32.safetensors"))
    rotary = Tensors(golden("ae_r64_c64.safetensors"))
    pairs = [("betas", schedule, "sched.betas"), ("alphas", schedule, "sched.alphas_cumprod"),
             ("signal_table", schedule, "sched.sqrt_alphas_cumprod"),
             ("spread_table", schedule, "sched.sqrt_one_minus_alphas_cumprod"),
             ("unscale_table", schedule, "sched.sqrt_recip_alphas_cumprod"),
             ("unnoise_table", schedule, "sched.sqrt_recipm1_alphas_cumprod"),
             ("clean_table", schedule, "sched.posterior_mean_coef1"),
             ("noisy_table", schedule, "sched.posterior_mean_coef2"),
             ("frame_cos", rotary, "rot.frame_cos"), ("frame_sin", rotary, "rot.frame_sin"),
             ("grid_cos", rotary, "rot.image_cos"), ("grid_sin", rotary, "rot.image_sin")]
    worst, count = 0.0, 0
    for mine, file, name in pairs:
        if name in file:
            worst = max(worst, check_close(have.get(mine), file.get(name), 1e-5, name))
            count += 1
    assert count >= 4 and norm(have.get("betas")) > 0
    return f"{count} tables, worst {worst:.1e}"
