"""Partial evaluation for sampling: rows of tables for the numbers of a step."""
import os
import re

from common import PVDMC, ROOT, Tensors, compiled, relative_error, run, scratch
from test_golden import UNET, golden

NO_TABLES = ["--rungs",
             "elementwise,norms,epilogues,attention,placement,batching,memory,winograd,split"]
STEP = re.compile(r"^ddim_step +-O2 .* (\d+) launches", re.M)


def test_rows_of_tables():
    """Two clips with guidance, with and without tables: the same latents, fewer launches."""
    folder, traces = scratch("rows"), []
    file = golden("unet_c32.safetensors")
    for name, flags in (("with", []), ("without", NO_TABLES)):
        exe = compiled("pvdm.model", *UNET, "-D", "channels=32", "-D", "ae_depth=1", *flags)
        trace = f"{folder}/{name}.safetensors"
        run(exe, "sample", "--weights", f"unet={file}#weights.", "--trace", trace, "--seed", 3,
            "--clips", 2, "--steps", "4,3", "--guidance", 1.5, "--batch", 2)
        traces.append(Tensors(trace))
    names = traces[0].names()
    assert len(names) == 7, names
    worst = max(relative_error(traces[0].get(n), traces[1].get(n)) for n in names)
    assert worst <= 1e-6, worst
    launches = [int(STEP.search(run(PVDMC, os.path.join(ROOT, "models", "pvdm.model"), "--stats",
                                    "--stop-after", "plan", *flags))[1])
                for flags in ([], NO_TABLES)]
    assert launches[0] < launches[1], launches
    return f"{worst:.1e}; {launches[1]} launches a step, {launches[0]} with tables"
