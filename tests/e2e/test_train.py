"""Training: kill -9 and resume to the same bits, a full disk, missing weights, too little
memory."""
import glob
import json
import os
import random
import re
import resource
import signal
import struct
import subprocess
import time
import zlib

from common import Skip, Tensors, compiled, run, scratch

TINY = ["-D", "resolution=32", "-D", "frames=4", "-D", "channels=32", "-D", "ae_depth=1",
        "-D", "ae_heads=2", "-D", "ae_dim_head=16", "-D", "model_channels=32",
        "-D", "channel_mult=[1,2]", "-D", "num_res_blocks=1"]
CONFIG = """batch: 2
steps: 12
log_every: 1
save_every: 3
seed: 7
keep: 3
perceptual_weight: 0
"""


def png(path, width, height, pixel):
    """Writes an RGB picture; pixel(x, y) gives three bytes."""
    rows = b"".join(b"\0" + bytes(v for x in range(width) for v in pixel(x, y))
                    for y in range(height))

    def chunk(kind, data):
        return struct.pack(">I",
                           len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    with open(path, "wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n"
                   + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
                   + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


def videos(folder, count=3, frames=10):
    """Folders of frames in which a square moves over a gradient."""
    rng = random.Random(1)
    for i in range(count):
        where = f"{folder}/train/video{i}/clip"
        os.makedirs(where)
        left, top, hue = rng.randrange(20), rng.randrange(20), rng.randrange(256)
        for k in range(frames):
            def pixel(x, y, k=k):
                inside = left + k <= x < left + k + 10 and top <= y < top + 10
                return (255, hue, 20) if inside else (x * 7 % 256, y * 7 % 256, hue)
            png(f"{where}/{k:04}.png", 36, 36, pixel)
    return folder


def setup(name):
    folder = scratch(name)
    videos(f"{folder}/data")
    with open(f"{folder}/c.yaml", "w", encoding="ascii") as file:
        file.write(CONFIG)
    return compiled("pvdm.model", *TINY), folder


def command(exe, folder, out, *more, stage="autoencoder"):
    return [exe, "train", stage, "--config", f"{folder}/c.yaml", "--data", f"{folder}/data",
            "--out", f"{folder}/{out}", *more]


def newest(folder):
    files = sorted(glob.glob(f"{folder}/step-*.safetensors"))
    assert files, f"no checkpoint in {folder}"
    return files[-1]


def bits(path):
    """Every tensor's bytes, and the counters (not the time of day)."""
    file = Tensors(path)
    return {name: file.get(name).tobytes() for name in file.names()}


def check_kill(stage, *more):
    exe, folder = setup(f"kill_{stage}")
    run(*command(exe, folder, "whole", *more, stage=stage))
    child = subprocess.Popen(command(exe, folder, "killed", *more, stage=stage),
                             stdout=subprocess.DEVNULL,
                             stderr=subprocess.DEVNULL)
    for _ in range(6000):  # killed once a checkpoint is there, before the end
        if glob.glob(f"{folder}/killed/step-*.safetensors") or child.poll() is not None:
            break
        time.sleep(0.01)
    assert child.poll() is None, "ended before it could be killed"
    child.send_signal(signal.SIGKILL)
    child.wait()
    at = newest(f"{folder}/killed")
    assert not at.endswith("00000012.safetensors"), "was at its end already"
    run(*command(exe, folder, "killed", "--resume", *more, stage=stage))
    whole, resumed = bits(newest(f"{folder}/whole")), bits(newest(f"{folder}/killed"))
    assert whole.keys() == resumed.keys()
    different = [name for name in whole if whole[name] != resumed[name]]
    assert not different, f"{len(different)} tensors differ, the first: {different[0]}"
    initial = [name for name in whole if name.startswith("adam_m.") and any(whole[name])]
    assert initial, "nothing was trained"
    return f"killed at {os.path.basename(at)}, {len(whole)} tensors the same"


def test_kill_and_resume_autoencoder():
    return check_kill("autoencoder")


def test_kill_and_resume_diffusion():
    exe, folder = setup("ae_for_diffusion")
    run(*command(exe, folder, "ae", "--set", "steps=2"))
    return check_kill("diffusion", "--weights", f"ae={newest(folder + '/ae')}#ae.")


def losses(path):
    values = []
    with open(path, encoding="ascii") as file:
        for line in file:
            entry = json.loads(line)
            if "loss" in entry:
                values.append(entry["loss"])
    return values


def test_loss_falls():
    exe, folder = setup("falls")
    run(*command(exe, folder, "out", "--set", "steps=60", "--set", "lr=0.002",
                 "--set", "save_every=60"))
    log = glob.glob(f"{folder}/out/*.jsonl")
    assert len(log) == 1, "no log"
    values = losses(log[0])
    assert len(values) == 60, f"{len(values)} losses"
    first, last = sum(values[:5]) / 5, sum(values[-5:]) / 5
    assert last < 0.8 * first, f"loss {first:.4f} -> {last:.4f}"
    assert glob.glob(f"{folder}/out/events.out.tfevents.*"), "no TensorBoard file"
    return f"{first:.3f} -> {last:.3f}"


def test_full_disk():
    """A file system of a few MiB: the run ends with status 3 and one message; the last checkpoint
    is whole."""
    exe, folder = setup("full_disk")
    mount = f"{folder}/small"
    os.makedirs(mount)
    run(*command(exe, folder, "probe", "--set", "steps=3"))
    size = os.path.getsize(newest(f"{folder}/probe"))
    mounting = ["mount", "-t", "tmpfs", "-o", f"size={int(size * 1.6)}", "tmpfs", mount]
    if os.geteuid() != 0 or subprocess.run(mounting, stderr=subprocess.DEVNULL,
                                           check=False).returncode:
        raise Skip("a small file system cannot be mounted here")
    try:
        told = run(*command(exe, folder, "small"), status=3)
        assert "space" in told.lower() and "step-00000006" in told, told
        good = newest(mount)
        assert os.path.getsize(good) == size and good.endswith("00000003.safetensors")
        assert bits(good) == bits(newest(f"{folder}/probe"))
    finally:
        subprocess.run(["umount", mount], check=True)


def test_file_size_limit():
    """A write that is cut short by a limit leaves no half checkpoint."""
    exe, folder = setup("file_limit")
    limit = (200000, 200000)
    done = subprocess.run(command(exe, folder, "out"), stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, check=False,
                          preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit))
    assert done.returncode == 3, f"status {done.returncode}: {done.stdout[-500:]}"
    assert "step-00000003" in done.stdout and "too large" in done.stdout.lower(), done.stdout
    assert not glob.glob(f"{folder}/out/step-*"), "a half checkpoint was left"
    assert max(os.path.getsize(f) for f in glob.glob(f"{folder}/out/*")) < 200000, "a leftover"


def test_too_little_memory():
    exe, folder = setup("memory")
    told = run(*command(exe, folder, "out", "--set", "batch=4000000"), status=3)
    said = re.search(r"needs [\d.]+ TiB at batch 4000000; [\d.]+ [GM]iB are free on this machine; "
                     r"batch (\d+) fits", told)
    assert said and int(said[1]) >= 1 and "activations" in told, told
    assert not glob.glob(f"{folder}/out/step-*")


def test_missing_weights():
    """Diffusion needs the autoencoder; lpips is needed unless its weight is 0."""
    exe, folder = setup("missing")
    told = run(*command(exe, folder, "out", stage="diffusion"), status=1)
    assert "ae" in told and "--weights" in told, told
    told = run(*command(exe, folder, "out", "--set", "perceptual_weight=1"), status=1)
    assert "lpips" in told and "--weights" in told, told


def test_bad_videos_are_skipped():
    exe, folder = setup("bad_videos")
    bad = f"{folder}/data/train/broken/clip"
    os.makedirs(bad)
    for k in range(10):
        with open(f"{bad}/{k:04}.png", "wb") as file:
            file.write(b"\x89PNG\r\n\x1a\n" + os.urandom(100))
    told = run(*command(exe, folder, "out"))
    assert told.count("broken") == 1 and "skipped" in told, told
    with open(glob.glob(f"{folder}/out/*.jsonl")[0], encoding="ascii") as file:
        assert len(file.read().splitlines()) >= 12
    only = f"{folder}/only"
    os.makedirs(f"{only}/train/broken/clip")
    for k in range(10):
        os.link(f"{bad}/{k:04}.png", f"{only}/train/broken/clip/{k:04}.png")
    told = run(exe, "train", "autoencoder", "--config", f"{folder}/c.yaml", "--data", only,
               "--out", f"{folder}/none", status=1)
    assert "none of the 1 videos can be used" in told, told


def test_config_errors():
    exe, folder = setup("config")
    told = run(*command(exe, folder, "out", "--set", "bacth=3"), status=1)
    assert "batch" in told, told
    with open(f"{folder}/c.yaml", "w", encoding="ascii") as file:
        file.write("batch: [unclosed\n")
    told = run(*command(exe, folder, "out"), status=1)
    assert "c.yaml" in told, told
    told = run(*command(exe, folder, "out", stage="difusion"), status=1)
    assert "diffusion" in told, told


def interrupt(number):
    exe, folder = setup(f"interrupt-{number}")
    child = subprocess.Popen(command(exe, folder, "out", "--set", "save_every=1000000",
                                     "--set", "steps=1000000"),
                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                             # what runs the tests may ignore it (nohup, a shell's `&`)
                             preexec_fn=lambda: signal.signal(number, signal.SIG_DFL))
    for _ in range(6000):
        log = glob.glob(f"{folder}/out/*.jsonl")
        if (log and len(losses(log[0])) >= 2) or child.poll() is not None:
            break
        time.sleep(0.01)
    child.send_signal(number)
    try:
        child.wait(60)
    finally:
        child.kill()
    assert child.returncode == -number, child.returncode      # as a shell's loop expects it
    at = newest(f"{folder}/out")
    assert len(losses(log[0])) == int(Tensors(at).metadata["step"]), "not of the last step"
    run(*command(exe, folder, "out", "--resume", "--set", f"steps={int(at[-20:-12]) + 1}"))


def test_interrupt_writes_a_checkpoint():
    interrupt(signal.SIGINT)


def test_closed_terminal_writes_a_checkpoint():
    interrupt(signal.SIGHUP)
