"""bench/gpu.sh where there is no GPU, and its comparison of tensors."""
import array
import os
import sys

from common import ROOT, run, scratch

sys.path.append(os.path.join(ROOT, "bench", "gpu"))


def test_gpu_script_without_gpu():
    """Says so, with status 3, whatever lies under out/."""
    told = run("sh", "bench/gpu.sh", status=3, env={"PVDM_CUDA_DRIVER": "/nowhere/libcuda.so"})
    assert "no GPU here" in told, told


def test_gpu_script_compares():
    """Tensors that differ, are missing or are no numbers are noticed."""
    import tensors
    folder = scratch("gpu_script")

    def write(name, values, key="y"):
        tensors.write(f"{folder}/{name}", {key: ("F32", [len(values)], array.array("f", values))})
        return f"{folder}/{name}"

    one = write("one", [3.0, 4.0])
    assert tensors.apart(one, write("same", [3.0, 4.0]))[0] == 0
    assert abs(tensors.apart(one, write("other", [3.0, 4.5]))[0] - 0.1) < 1e-6
    assert not tensors.apart(one, write("nan", [3.0, float("nan")]))[0] <= 1
    assert tensors.apart(one, write("missing", [3.0, 4.0], "z"))[0] > 1
    drawn = tensors.draw(1, [{"name": "x", "dtype": "f32", "shape": ["b", 3]},
                             {"name": "t", "dtype": "i64", "shape": ["b"]}], 2)
    assert len(drawn["x"][2]) == 6 and len(drawn["t"][2]) == 2
    path = write("zeros", [0.0, 0.0])
    tensors.fill_zeros(path)
    tensors.fill_zeros(one)
    assert all(tensors.read(path)["y"][2]) and list(tensors.read(one)["y"][2]) == [3.0, 4.0]
