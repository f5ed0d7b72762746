"""Memory errors and leaks of the compiler and of a whole life of a model, under valgrind's
memcheck."""
import shutil

from common import PVDMC, ROOT, Skip, Tensors, compiled, norm, run, scratch, write_tensors
from test_train import newest, videos

# Every kind of layer, as small as it goes; instructions that valgrind knows.
LEAST = ["--march=x86-64-v2"] + [word for constant in (
    "resolution=16", "frames=2", "channels=32", "ae_depth=1", "ae_heads=2", "ae_dim_head=16",
    "mixer_depth=1", "mixer_heads=2", "mixer_hidden=32", "model_channels=32", "channel_mult=[1]",
    "num_res_blocks=1", "num_heads=2",
    "ndf=8", "ae_accumulate=1") for word in ("-D", constant)]
CONFIG = "batch: 1\nsteps: 2\nlog_every: 1\nsave_every: 100\nseed: 1\nperceptual_weight: 0\n"


def memcheck(*command, leaks=True):
    """Runs a command under memcheck: errors of any kind and lost blocks fail."""
    if not shutil.which("valgrind"):
        raise Skip("valgrind is not installed")
    kinds = ["--leak-check=full", "--show-leak-kinds=definite",
             "--errors-for-leak-kinds=definite"] if leaks else []
    told = run("valgrind", "-q", "--error-exitcode=9", *kinds, *command,
               env={"OMP_NUM_THREADS": "1"})
    assert "==" not in told, told[-3000:]
    return told


def test_compiler_memory():
    """Its memory lives as long as the process, so leaks are not looked for."""
    model = f"{ROOT}/models/pvdm-tiny.model"
    memcheck(PVDMC, "--check", model, leaks=False)
    assert len(memcheck(PVDMC, "--emit", "plan", model, "-D", "resolution=32", "-D", "frames=4",
                        leaks=False)) > 1000


def test_executable_memory():
    exe, folder = compiled("pvdm.model", *LEAST), scratch("valgrind")
    videos(f"{folder}/data", count=2, frames=4)
    with open(f"{folder}/c.yaml", "w", encoding="ascii") as file:
        file.write(CONFIG)

    def train(stage, *more):
        memcheck(exe, "train", stage, "--config", f"{folder}/c.yaml", "--data", f"{folder}/data",
                 "--out", f"{folder}/{stage}", *more)
        return newest(f"{folder}/{stage}")
    ae = ["--weights", f"ae={train('autoencoder')}#ae."]
    train("autoencoder", "--resume", "--set", "steps=3")
    both = [*ae, "--weights", f"unet={train('diffusion', *ae)}#unet."]
    trace = f"{folder}/trace.safetensors"
    memcheck(exe, "sample", *both, "--steps", "2", "-o", f"{folder}/frames", "--trace", trace)
    memcheck(exe, "run", "decode", *ae, "--in", f"z={trace}:x_after.2",
             "--out", f"{folder}/o.safetensors")
    write_tensors(f"{folder}/t.safetensors", {"t": ("I64", [1], [500])})
    memcheck(exe, "grad", "diffusion_loss", *both, "--in", f"{folder}/t.safetensors",
             "--in", f"x_start={trace}:x_after.1", "--in", f"cond={trace}:x_after.2",
             "--in", f"noise={trace}:x_after.2", "--out", f"{folder}/g.safetensors")
    assert norm(Tensors(f"{folder}/g.safetensors").get("grad.x_start")) > 0
    memcheck(exe, "reconstruct", f"{folder}/data/train/video0/clip", *ae, "-o", f"{folder}/back")
    memcheck(exe, "weights", "ls", trace)
