"""Files in and out: published checkpoints, hostile pickles, videos, packed data, UCF-101's
layout."""
import glob
import os
import random
import re
import shutil
import struct
import sys
import zipfile

from common import PVDMC, ROOT, Skip, Tensors, compiled, run, scratch
from test_golden import UNET, golden
from test_train import bits, command, losses, newest, setup, videos

sys.path.insert(0, os.path.join(ROOT, "tests"))
import make_torch_file as torch_file  # noqa: E402

FRAMES, SIZE = 4, 32                    # of the model that test_train compiles


# ---- files of torch.save ----

def golden_state(prefix):
    """The golden U-Net's weights as a state dict of torch tensors, names under `prefix`."""
    source, state = Tensors(golden("unet_c32.safetensors")), {}
    for i, name in enumerate(source.names("weights.")):
        storage = torch_file.Storage("Float", str(i), source.get(name))
        state[prefix + name[8:]] = torch_file.Tensor(storage, source.shape(name))
    return state


def test_torch_weights():
    """A .pth gives the bits that the safetensors of the same weights gives, imported or at once."""
    exe, folder = compiled("pvdm.model", *UNET), scratch("torch_weights")
    file = golden("unet_c32.safetensors")
    torch_file.write(f"{folder}/plain.pth", golden_state(""))
    torch_file.write(f"{folder}/wrapped.pth", {"epoch": 3, "state_dict": golden_state("module.")},
                     compression=zipfile.ZIP_DEFLATED)
    told = run(exe, "weights", "import", f"{folder}/plain.pth", "--instance", "unet",
               "-o", f"{folder}/w.safetensors")
    assert "w.safetensors" in told and "'unet'" in told, told
    names = Tensors(f"{folder}/w.safetensors").names()
    assert all(name.startswith("unet.") for name in names)
    assert len(names) == len(Tensors(file).names("weights.")), len(names)
    outs = []
    for weights in (f"unet={file}#weights.", f"unet={folder}/plain.pth", f"{folder}/w.safetensors",
                    f"unet={folder}/wrapped.pth#state_dict."):
        run(exe, "run", "denoise", "--weights", weights, "--in", file,
            "--out", f"{folder}/o.safetensors")
        outs.append(Tensors(f"{folder}/o.safetensors").get("eps").tobytes())
    assert len(set(outs)) == 1, "not the same bits"
    run(exe, "weights", "export", f"{folder}/w.safetensors", "--instance", "unet",
        "-o", f"{folder}/x.safetensors")
    want, have = Tensors(file), Tensors(f"{folder}/x.safetensors")
    assert sorted(have.names()) == sorted(name[8:] for name in want.names("weights."))
    for name in have.names():
        assert list(have.get(name)) == list(want.get("weights." + name)), name


def test_torch_mismatch_lists_all():
    exe, folder = compiled("pvdm.model", *UNET), scratch("torch_mismatch")
    state = golden_state("")
    del state["out.2.weight"]
    state["surplus"] = torch_file.Tensor(torch_file.counting("Float", "s", 2), [2])
    state["out.2.bias"] = torch_file.Tensor(torch_file.counting("Float", "t", 9), [9])
    torch_file.write(f"{folder}/w.pth", state)
    told = run(exe, "weights", "import", f"{folder}/w.pth", "--instance", "unet",
               "-o", f"{folder}/o.safetensors",
               status=1)
    for part in ("out.2.weight", "surplus", "out.2.bias", "[9]"):
        assert part in told, f"{part} is not told:\n{told}"
    assert os.listdir(folder) == ["w.pth"], os.listdir(folder)


def commands_in_pickles(marker):
    """Pickles that would run `touch MARKER` if something in them were called."""
    touch = f"touch {marker}".encode()
    short = b"X" + struct.pack("<I", len(touch)) + touch
    write = f"open({marker!r}, 'w').close()".encode()
    text = b"X" + struct.pack("<I", len(write)) + write
    return {
        "global": b"cos\nsystem\n(S'" + touch + b"'\ntR.",
        "posix": b"\x80\x02cposix\nsystem\n" + short + b"\x85R.",
        "stack": b"\x80\x04\x8c\x02os\x8c\x06system\x93" + short + b"\x85R.",
        "inst": b"(S'" + touch + b"'\nios\nsystem\n.",
        "obj": b"(cos\nsystem\n" + short + b"o.",
        "new": b"\x80\x02cos\nsystem\n" + short + b"\x85\x81.",
        "exec": b"\x80\x02cbuiltins\nexec\n" + text + b"\x85R.",
        "eval": b"\x80\x02c__builtin__\neval\n" + text + b"\x85R.",
        "popen": b"\x80\x02csubprocess\nPopen\n(" + short + b"K\x00N" + b"N" * 4 + b"\x88tR.",
        "nested": b"\x80\x04\x8c\x08builtins\x8c\x07getattr\x93\x8c\x02os\x8c\x06system\x86R"
        + short + b"\x85R.",
        "build": b"\x80\x02ctorch\nTensor\n)\x81}X\x0c\x00\x00\x00__setstate__cos\nsystem\nsb.",
        "extension": b"\x80\x02\x82\x01" + short + b"\x85R.",
    }


def pickles_of_size():
    """Pickles that ask for much: depth, lengths, memo places, frames."""
    return {
        "lists": b"]" * 3000000 + b"a" * 2999999 + b".",
        "tuples": b"\x80\x02)" + b"\x85" * 3000000 + b".",
        "marks": b"(" * 5000000 + b".",
        "unicode8": b"\x80\x04\x8d" + b"\xff" * 7 + b"\x7fabc.",
        "bytes8": b"\x80\x04\x8e" + b"\xff" * 8 + b"abc.",
        "long4": b"\x80\x02\x8b\xff\xff\xff\x7f1.",
        "long4_negative": b"\x80\x02\x8b\xff\xff\xff\xff1.",
        "frame": b"\x80\x04\x95" + b"\xff" * 8 + b"}.",
        "memo": b"\x80\x02}r\xff\xff\xff\xff.",
        "put": b"}p99999999999999999999\n.",
        "decimal": b"I" + b"9" * 100000 + b"\n.",
        "doubled": b"\x80\x02]q\x00" + b"(" + b"h\x00" * 1000000 + b"e.",
        "nothing": b"",
    }


def test_hostile_torch_files():
    """Status 1 and one message that names the file; nothing in it is executed; nothing is
    written."""
    exe, folder = compiled("pvdm.model", *UNET), scratch("hostile_torch")
    marker, bad = f"{folder}/MARKER", f"{folder}/bad"
    os.makedirs(bad)
    run(sys.executable, f"{ROOT}/tests/make_torch_file.py", bad)
    for name in os.listdir(bad):
        if not name.startswith("bad_"):
            os.unlink(f"{bad}/{name}")
    for name, data in {**commands_in_pickles(marker), **pickles_of_size()}.items():
        torch_file.write(f"{bad}/{name}.pth", None, data=data)
    torch_file.write(f"{bad}/bomb.pth", None, data=bytes(1 << 28), compression=zipfile.ZIP_DEFLATED)
    torch_file.write(f"{folder}/good", torch_file.state_dict(), compression=zipfile.ZIP_DEFLATED)
    with open(f"{folder}/good", "rb") as file:
        good = file.read()
    for i in range(12):
        with open(f"{bad}/cut{i}.pth", "wb") as file:
            file.write(good[:len(good) * i // 12])
    at = good.index(b"PK\1\2")  # the directory tells 2 GiB for data.pkl
    with open(f"{bad}/lie.pth", "wb") as file:
        file.write(good[:at + 24] + struct.pack("<I", 2 ** 31 - 1) + good[at + 28:])
    os.unlink(f"{folder}/good")
    files = sorted(os.listdir(bad))
    for name in files:
        told = run(exe, "weights", "ls", f"{bad}/{name}", status=1, timeout=60)
        assert name in told and told.count("error:") == 1, f"{name}: {told[-500:]}"
    for name in ("global.pth", "bad_beyond.pth", "bad_system4.pth"):
        run(exe, "weights", "import", f"{bad}/{name}", "--instance", "unet",
            "-o", f"{folder}/o", status=1)
        run(exe, "run", "denoise", "--weights", f"unet={bad}/{name}",
            "--in", golden("unet_c32.safetensors"),
            "--out", f"{folder}/o", status=1)
    assert not os.path.exists(marker), "something in a file was executed"
    assert os.listdir(folder) == ["bad"], os.listdir(folder)
    return f"{len(files)} files"


def test_damaged_torch_files():
    """Bytes of a good file replaced at random: read or refused, never a crash."""
    exe, folder = compiled("pvdm.model", *UNET), scratch("damaged_torch")
    torch_file.write(f"{folder}/good.pth", torch_file.state_dict())
    with open(f"{folder}/good.pth", "rb") as file:
        good = file.read()
    rng, refused = random.Random(3), 0
    for _ in range(60):
        raw = bytearray(good)
        for _ in range(rng.choice((1, 4, 30))):
            raw[rng.randrange(len(raw))] = rng.randrange(256)
        with open(f"{folder}/bad.pth", "wb") as file:
            file.write(raw)
        try:
            told = run(exe, "weights", "ls", f"{folder}/bad.pth", status=1, timeout=60)
            assert "bad.pth" in told, told
            refused += 1
        except AssertionError as error:
            if not str(error).startswith("status 0"):
                raise
    assert refused > 30, refused
    return f"{refused} of 60 refused"


# ---- videos ----

def trained():
    """An executable, a folder, and the --weights of an autoencoder and a U-Net of two steps."""
    exe, folder = setup("files_trained")
    run(*command(exe, folder, "ae", "--set", "steps=2"))
    ae = ["--weights", f"ae={newest(folder + '/ae')}#ae."]
    run(*command(exe, folder, "unet", "--set", "steps=2", *ae, stage="diffusion"))
    return exe, folder, ae, [*ae, "--weights", f"unet={newest(folder + '/unet')}#unet."]


def need_video():
    if not glob.glob(os.path.join(os.path.dirname(PVDMC), "lib", "libpvdm_video.so")):
        raise Skip("FFmpeg's plug-in was not built")


def read(path):
    with open(path, "rb") as file:
        return file.read()


def picture_size(path):
    return struct.unpack(">II", read(path)[16:24])


def test_sample_outputs():
    """One sampler into every kind of file; the seed alone decides what is in it."""
    exe, folder, _, weights = trained()

    def sample(out, *more):
        return run(exe, "sample", *weights, "--steps", "3", "--seed", "5",
                   "-o", f"{folder}/{out}", *more)
    sample("one")
    sample("two")
    sample("other", "--seed", "6")
    frames = [sorted(glob.glob(f"{folder}/{out}/*.png")) for out in ("one", "two", "other")]
    assert [len(names) for names in frames] == [FRAMES] * 3, frames
    same = [read(a) == read(b) for a, b in zip(frames[0], frames[1])]
    assert all(same), "two runs differ"
    assert any(read(a) != read(b) for a, b in zip(frames[0], frames[2])), "the seed changes nothing"
    assert picture_size(frames[0][0]) == (SIZE, SIZE)
    sample("long", "--frames", str(2 * FRAMES + 1))
    assert len(glob.glob(f"{folder}/long/*.png")) == 2 * FRAMES + 1
    sample("row.png")
    assert picture_size(f"{folder}/row.png")[0] >= FRAMES * SIZE
    told = run(exe, "sample", *weights, "-o", f"{folder}/x.avi", status=2)
    assert ".mp4" in told, told
    told = run(exe, "sample", *weights, "-o", f"{folder}/row.png/x.png", status=1)
    assert "row.png" in told, told
    need_video()
    sample("x.mp4")
    sample("x.gif")
    assert read(f"{folder}/x.mp4")[4:8] == b"ftyp" and read(f"{folder}/x.gif")[:6] == b"GIF89a"
    hidden = [name for name in os.listdir(folder) if name.endswith(".tmp")]
    assert not hidden, hidden


def clip(folder, name, weights, exe, seed):
    """A short video file as our own encoder writes it."""
    run(exe, "sample", *weights, "--steps", "2", "--frames", "8", "--seed", str(seed),
        "-o", f"{folder}/clip.mp4")
    os.makedirs(os.path.dirname(f"{folder}/{name}"), exist_ok=True)
    os.replace(f"{folder}/clip.mp4", f"{folder}/{name}")
    return f"{folder}/{name}"


def test_reconstruct_and_psnr():
    """A folder of frames, a video file, something that is neither; eval psnr over all of them."""
    exe, folder, ae, weights = trained()
    frames = f"{folder}/data/train/video0/clip"
    told = run(exe, "reconstruct", frames, *ae, "-o", f"{folder}/back")
    assert "10 frames, PSNR" in told, told
    assert len(glob.glob(f"{folder}/back/*.png")) == 10
    run(exe, "reconstruct", frames, *ae, "--side-by-side", "-o", f"{folder}/both")
    assert picture_size(sorted(glob.glob(f"{folder}/both/*.png"))[0]) == (2 * SIZE, SIZE)
    run(exe, "reconstruct", f"{folder}/absent.mp4", *ae, "-o", f"{folder}/no", status=1)
    told = run(exe, "eval", "psnr", *ae, "--data", f"{folder}/data")
    assert "all 3 videos" in told and len(re.findall(r"\d dB  .*video\d/clip", told)) == 3, told
    run(exe, "eval", "psmr", status=2)
    need_video()
    movie = clip(folder, "movies/a.mp4", weights, exe, 1)
    told = run(exe, "reconstruct", movie, *ae, "-o", f"{folder}/back.gif")
    assert "8 frames" in told and read(f"{folder}/back.gif")[:6] == b"GIF89a", told
    with open(f"{folder}/movies/broken.mp4", "wb") as file:
        file.write(read(movie)[:900])
    told = run(exe, "reconstruct", f"{folder}/movies/broken.mp4", *ae,
               "-o", f"{folder}/no.mp4", status=1)
    assert "broken.mp4" in told and not os.path.exists(f"{folder}/no.mp4"), told
    told = run(exe, "eval", "psnr", *ae, "--data", f"{folder}/movies")
    assert "all 1 videos; 1 skipped" in told and "broken.mp4" in told, told


# ---- data sets ----

def test_packed_data():
    """Training from a packed file has the losses and the bits of training from the folder."""
    exe, folder = setup("packed")
    run(exe, "data", "pack", f"{folder}/data", "-o", f"{folder}/packed.data", status=2)
    run(exe, "data", "pack", f"{folder}/data", "-o", f"{folder}/packed.safetensors")
    run(*command(exe, folder, "a", "--set", "steps=5"))
    run(*command(exe, folder, "b", "--set", "steps=5", "--data", f"{folder}/packed.safetensors"))
    first, second = losses(f"{folder}/a/log.jsonl"), losses(f"{folder}/b/log.jsonl")
    assert len(first) == 5 and first == second, f"{first} {second}"
    assert bits(newest(f"{folder}/a")) == bits(newest(f"{folder}/b"))
    with open(f"{folder}/packed.safetensors", "r+b") as file:
        file.truncate(20000)
    told = run(*command(exe, folder, "c", "--data", f"{folder}/packed.safetensors"), status=1)
    assert "packed.safetensors" in told, told
    run(exe, "data", "pack", f"{folder}/absent", "-o", f"{folder}/x.safetensors", status=1)
    assert not os.path.exists(f"{folder}/x.safetensors")


def test_ucf_layout():
    """Classes as folders, trainlist01.txt with class numbers: only what is listed is trained on."""
    need_video()
    exe, folder, _, weights = trained()
    shutil.rmtree(f"{folder}/data")
    names = [f"{kind}/v_{kind}_g0{k}_c01.avi" for kind in ("Archery", "Biking") for k in (1, 2)]
    for i, name in enumerate(names):
        clip(folder, f"data/{name}", weights, exe, i)
    with open(f"{folder}/data/Archery/v_Archery_g02_c01.avi", "wb") as file:
        file.write(b"RIFF not a video")
    os.makedirs(f"{folder}/data/ucfTrainTestlist")
    with open(f"{folder}/data/ucfTrainTestlist/trainlist01.txt", "w", encoding="ascii",
              newline="") as file:
        file.write(
            f"{names[0]} 1\r\n{names[1]} 1\r\n{names[2]} 2\r\nBiking/v_Biking_g09_c01.avi 2\r\n")
    told = run(*command(exe, folder, "ucf", "--set", "steps=4"))
    assert ": 3 videos" in told and "v_Biking_g09" in told, told
    assert told.count("v_Archery_g02") == 1 and "skipped" in told, told
    assert len(losses(f"{folder}/ucf/log.jsonl")) == 4


def test_sky_layout():
    """sky/train/<video>/<clip>/*: the folder of the split is chosen, each clip is one video."""
    exe, folder = setup("sky")
    videos(f"{folder}/sky", count=2)
    os.rename(f"{folder}/sky/train/video1", f"{folder}/sky/test")
    told = run(*command(exe, folder, "out", "--set", "steps=2", "--data", f"{folder}/sky"))
    assert ": 1 video" in told, told
