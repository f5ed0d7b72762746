"""Planned memory: packings near the largest live set."""
import os
import re

from common import PVDMC, ROOT, run

MODELS = ["pvdm.model", "pvdm-concat.model", "pvdm-tiny.model", "planes-dit.model"]
PACKED = re.compile(r"^(\S+) +-O(\d).* packed +([\d.]+)% \+ +([\d.]+)%$", re.M)


def test_packings():
    """Both packings of every plan fill at least 95 % of their arena at its fullest moment."""
    for model in MODELS:
        for level in "012":
            text = run(PVDMC, os.path.join(ROOT, "models", model), f"-O{level}", "--stats",
                       "--stop-after", "plan")
            plans = PACKED.findall(text)
            assert len(plans) > 40, text
            for name, _, fixed, batch in plans:
                assert float(fixed) >= 95 and float(batch) >= 95, (model, level, name, fixed, batch)
