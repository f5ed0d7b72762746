#!/usr/bin/env python3
"""Files as torch.save writes them, good ones and hostile ones, without PyTorch.

    make_torch_file.py FOLDER

Stand-ins for torch's modules make Python's pickler emit the globals, tuples and persistent ids that
torch.save emits; zipfile puts the pickle and the storages together. Tensor element k is its index
plus 1 unless said otherwise.
"""
import collections
import io
import os
import pickle
import struct
import sys
import types
import zipfile

FORMATS = {"Float": "f", "Double": "d", "Half": "e", "Long": "q", "Int": "i", "Short": "h",
           "Char": "b",
           "Byte": "B", "Bool": "?", "BFloat16": None}

torch = types.ModuleType("torch")
utils = types.ModuleType("torch._utils")
sys.modules["torch"], sys.modules["torch._utils"] = torch, utils
for kind in FORMATS:
    name = kind + "Storage"
    setattr(torch, name, type(name, (), {"__module__": "torch"}))


def rebuild(name):
    def function(*_):
        raise AssertionError("only pickled, never called")
    function.__module__, function.__qualname__, function.__name__ = "torch._utils", name, name
    setattr(utils, name, function)
    return function


rebuild_tensor, rebuild_parameter = rebuild("_rebuild_tensor_v2"), rebuild("_rebuild_parameter")


class Storage:
    def __init__(self, kind, key, numbers):
        self.kind, self.key, self.count = kind, key, len(numbers)
        if kind == "BFloat16":
            self.data = b"".join(struct.pack("<f", x)[2:] for x in numbers)
        else:
            self.data = struct.pack("<%d%s" % (len(numbers), FORMATS[kind]), *numbers)


class Tensor:
    def __init__(self, storage, size, stride=None, offset=0, parameter=False):
        if stride is None:
            stride, step = [], 1
            for n in reversed(size):
                stride.insert(0, step)
                step *= n
        self.args = (storage, offset, tuple(size), tuple(stride), False, collections.OrderedDict())
        self.parameter = parameter

    def __reduce__(self):
        if self.parameter:
            return rebuild_parameter, (Tensor(*[self.args[i] for i in (0, 2, 3, 1)]), True,
                                       collections.OrderedDict())
        return rebuild_tensor, self.args


class Pickler(pickle.Pickler):
    def persistent_id(self, value):
        if isinstance(value, Storage):
            self.storages[value.key] = value
            return ("storage", getattr(torch, value.kind + "Storage"), value.key, "cpu",
                    value.count)
        return None


def pickled(value, protocol):
    out = io.BytesIO()
    pickler = Pickler(out, protocol)
    pickler.storages = {}
    pickler.dump(value)
    return out.getvalue(), pickler.storages


def write(path, value, protocol=2, compression=zipfile.ZIP_STORED, leave_out=(), data=None,
          order=b"little"):
    text, storages = pickled(value, protocol) if data is None else (data, {})
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", text)
        if order:
            archive.writestr("archive/byteorder", order)
        for key, storage in storages.items():
            if key not in leave_out:
                archive.writestr("archive/data/" + key, storage.data)
        archive.writestr("archive/version", "3\n")


def counting(kind, key, n):
    return Storage(kind, key, [k % 2 == 0 if kind == "Bool" else k + 1 for k in range(n)])


def state_dict():
    big = counting("Float", "0", 24)
    state = collections.OrderedDict()
    state["w"] = Tensor(big, [4, 6])
    state["transposed"] = Tensor(big, [6, 4], [1, 6])
    state["tail"] = Tensor(big, [2, 3], offset=18)
    state["expanded"] = Tensor(big, [3, 2], [0, 1], offset=4)
    state["scalar"] = Tensor(counting("Long", "1", 1), [])
    state["empty"] = Tensor(counting("Float", "2", 0), [0, 5])
    for i, kind in enumerate(FORMATS):
        state["kind." + kind] = Tensor(counting(kind, str(10 + i), 5), [5])
    state._metadata = {"": {"version": 1}}
    return state


def main():
    folder = sys.argv[1]
    at = lambda name: os.path.join(folder, name)
    for protocol in (2, 3, 4, 5):
        write(at("plain%d.pth" % protocol), state_dict(), protocol)
    write(at("deflated.pth"), state_dict(), compression=zipfile.ZIP_DEFLATED)
    one = counting("Float", "0", 6)
    write(at("nested.pth"), {
        "epoch": 7, "lr": 0.5, "name": "run", "done": True, "big": 1 << 80, "nothing": None,
        "state_dict": {"a": {"b": Tensor(one, [6], parameter=True)}},
        "optimizer": {"state": {0: {"exp_avg": Tensor(one, [2, 3])}},
                      "param_groups": [{"params": [0]}]},
    })
    write(at("alone.pt"), Tensor(one, [6]))

    # what must be refused
    write(at("bad_beyond.pth"), {"a": Tensor(one, [7])})
    write(at("bad_offset.pth"), {"a": Tensor(one, [2], offset=5)})
    write(at("bad_overflow.pth"), {"a": Tensor(one, [1 << 40, 1 << 40], [1 << 40, 1])})
    write(at("bad_stride.pth"), {"a": Tensor(one, [2, 2], [1 << 62, 1 << 62])})
    write(at("bad_negative.pth"), {"a": Tensor(one, [2], [-1], offset=1)})
    write(at("bad_bomb.pth"), {"a": Tensor(one, [1 << 20, 1 << 20], [0, 0])})
    write(at("bad_rank.pth"), {"a": Tensor(one, [1] * 9)})
    write(at("bad_missing.pth"), {"a": Tensor(one, [6])}, leave_out=("0",))
    write(at("bad_endian.pth"), {"a": Tensor(one, [6])}, order=b"big")
    write(at("bad_empty.pth"), {})
    write(at("bad_system.pth"), None, data=b"cos\nsystem\n(S'true'\ntR.")
    write(at("bad_system4.pth"), None,
          data=b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x04true\x85R.")
    write(at("bad_eval.pth"), None, data=b"\x80\x02c__builtin__\neval\nX\x01\x00\x00\x001\x85R.")
    write(at("bad_stop.pth"), None, data=b"\x80\x02}")
    write(at("bad_mark.pth"), None, data=b"(t")
    write(at("bad_memo.pth"), None, data=b"\x80\x02h\x07.")
    write(at("bad_opcode.pth"), None, data=b"\x80\x02\xff.")
    write(at("bad_cycle.pth"), None, data=b"\x80\x02]q\x00h\x00a.")  # a list that holds itself
    laughs = b"\x80\x02]q\x00" + b"".join(b"](" + b"h%c" % i * 10 + b"eq%c" % (i + 1)
                                          for i in range(40)) + b"."
    write(at("bad_laughs.pth"), None, data=laughs)
    with open(at("bad_legacy.pth"), "wb") as out:
        pickle.dump(0x1950a86a20f9469cfc6c, out, 2)
        pickle.dump(1001, out, 2)
    with zipfile.ZipFile(at("bad_zip.pth"), "w") as archive:
        archive.writestr("hello.txt", "hello")
    with open(at("plain2.pth"), "rb") as whole:
        content = whole.read()
    with open(at("bad_cut.pth"), "wb") as out:
        out.write(content[:len(content) // 2])
    with open(at("bad_crc.pth"), "wb") as out:
        place = content.index(struct.pack("<3f", 1, 2, 3))
        out.write(content[:place] + b"\xff" + content[place + 1:])


if __name__ == "__main__":
    main()
