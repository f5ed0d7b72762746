"""What became of a line (--explain); the graph after each pass as a page and as Graphviz text."""
import json
import os
import re

from common import PVDMC, ROOT, run, scratch
from test_train import TINY

SMALL = os.path.join(ROOT, "tests", "models", "small.model")
PVDM = os.path.join(ROOT, "models", "pvdm.model")


def test_explain_a_line():
    told = run(PVDMC, "--explain", f"{SMALL}:9", "--machine", "10,50", "--batch", "4")
    assert "y = silu(norm(first(x)))" in told, told
    assert re.search(r"elaborated: .*conv", told), told
    assert "batch 4; predicted by the roofline of 10 GB/s and 50 GFLOP/s" in told, told
    restore = told.split("\nrestore: ")[1].split("\n\n")[0]
    # the norm's table is made with the convolution before, its values by the one behind
    assert "1 of 2 launches" in restore and "conv3x3 + bias + norm_table" in restore, told
    assert "backward" not in restore, told
    gradient = told.split("\ngrad.distance: ")[1].split("\n\n")[0]
    forward, backward = gradient.split("  backward\n")
    assert "conv3x3 + bias" in forward and "conv_wgrad3x3" in backward, told
    assert "group_norm_grad" in backward, told
    # twice the batch moves more; at -O0 nothing is fused
    again = run(PVDMC, "--explain", f"{SMALL}:9", "--machine", "10,50", "-O0")
    assert "norm_table" not in again and "group_norm" in again and "silu" in again, again


def test_explain_an_imported_line():
    told = run(PVDMC, "--explain", "unet.model:17", PVDM, *TINY)
    assert "conv3x3" in told and "denoise: " in told and "(a guess" in told, told
    assert "segments" in told and "views of other values" in told, told
    told = run(PVDMC, "--explain", f"{PVDM}:1", *TINY)
    assert "no operation comes from this line" in told, told


def test_explain_says_what_is_wrong():
    told = run(PVDMC, "--explain", f"{SMALL}:999", status=1)
    assert "has no line 999" in told, told
    told = run(PVDMC, "--explain", "other.model:3", SMALL, status=1)
    assert "'other.model' is no file of this model" in told, told
    for wrong in (SMALL, f"{SMALL}:0", f"{SMALL}:x"):
        assert "FILE.model:LINE" in run(PVDMC, "--explain", wrong, status=2)
    assert "--machine wants" in run(PVDMC, "--explain", f"{SMALL}:9", "--machine", "fast", status=2)
    assert "--batch wants" in run(PVDMC, "--explain", f"{SMALL}:9", "--batch", "0", status=2)


def test_page_of_graphs():
    folder = scratch("page")
    page = f"{folder}/graphs.html"
    run(PVDMC, PVDM, *TINY, "--emit", "html", "-o", page)
    with open(page) as file:
        text = file.read()
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>',
                                text, re.S)[1])
    passes = [graph["pass"] for graph in data["graphs"]]
    assert passes == ["elaborate", "grad", "simplify", "layout"], text[:200]
    names = data["entries"]
    assert "denoise" in names and "grad.diffusion_loss" in names, names
    for graph in data["graphs"]:
        for number, node in enumerate(graph["nodes"], 1):
            assert node[0] < len(data["ops"]) and max(node[1:5]) < len(data["texts"]), node
            assert all(1 <= operand < number for operand in node[5:]), node
    for entry in range(len(names)):
        for variant in range(len(data["graphs"][0]["outputs"][entry])):
            for kind in ("groups", "plans"):
                assert any((p["entry"], p["variant"]) == (entry, variant)
                           for p in data[kind]), (kind, names[entry], variant)
    for plan in data["plans"]:
        launches = len(plan["launches"])
        for size, batch, offset, first, last in plan["buffers"]:
            assert 0 <= first <= last < launches and size > 0, plan["entry"]
            assert offset + size <= plan["arena"][batch], (plan["entry"], offset, size)
        check_apart(plan["buffers"])


def check_apart(buffers):
    """No two buffers that live at once share bytes."""
    for batch in (0, 1):
        mine = sorted((b for b in buffers if b[1] == batch), key=lambda b: b[2])
        for i, (size, _, offset, first, last) in enumerate(mine):
            for other in mine[i + 1:]:
                if other[2] >= offset + size:
                    break
                assert other[4] < first or other[3] > last, ("they overlap", mine[i], other)


def test_dumps_as_graphviz():
    for name, word in (("elaborate", "conv"), ("simplify", "conv"),
                       ("fuse", "conv3x3 + bias + norm_table"),
                       ("batch", "conv3x3 + bias + norm_table"),
                       ("plan", "conv3x3 + norm_load + bias + add")):
        text = run(PVDMC, SMALL, "--emit", "dot", "--dump", name)
        assert text.startswith(f"// after {name}\ndigraph ") and word in text, text[:400]
        assert " -> " in text, text[:400]
        assert text.count("{") == text.count("}"), name
