"""What every file of the sources keeps to: at most 100 characters a line and 800 lines a file, a
comment on top that says what it is for, nothing marked as still to be done."""
import os
import re

from common import ROOT

FOLDERS = ("bench", "build", "codegen", "compiler", "grammar", "models", "runtime", "tests")
COMMENT = {".c": "//", ".h": "/*", ".cu": "/*", ".cc": "/*", ".l": "/*", ".y": "/*", ".def": "//",
           ".model": "//", ".cmake": "#", ".py": '"""', ".sh": "#"}
COLUMNS, LINES = 100, 800


def sources():
    """(path from the root, its lines) of every file of a kind that is in COMMENT."""
    for folder in FOLDERS:
        for at, folders, names in os.walk(os.path.join(ROOT, folder)):
            folders[:] = [name for name in folders if name != "__pycache__"]
            for name in sorted(names):
                path = os.path.relpath(os.path.join(at, name), ROOT)
                if os.path.splitext(name)[1] in COMMENT and "language/" not in path:
                    with open(os.path.join(at, name), encoding="utf-8") as file:
                        yield path, file.read().split("\n")


def test_lengths():
    long, files = [], 0
    for path, lines in sources():
        files += 1
        long += [f"{path}:{n}" for n, line in enumerate(lines, 1) if len(line) > COLUMNS]
        assert len(lines) - 1 <= LINES, f"{path} has {len(lines) - 1} lines"
    assert not long, f"{len(long)} lines of more than {COLUMNS} characters: {' '.join(long[:20])}"
    assert files > 400, f"only {files} files were found"


def test_heads():
    for path, lines in sources():
        head = [line for line in lines if not line.startswith("#!")][0]
        mark = COMMENT[os.path.splitext(path)[1]]
        assert head.startswith((mark, "//", "/*")), f"{path} does not say what it is for: {head}"


def test_nothing_is_left_open():
    # put together, so that this file does not match itself
    words = ("TO" "DO", "FIX" "ME", "XX" "X")
    mark = re.compile(rf"\b({'|'.join(words)})\b")
    for path, lines in sources():
        for number, line in enumerate(lines, 1):
            assert not mark.search(line), f"{path}:{number}: {line.strip()}"
