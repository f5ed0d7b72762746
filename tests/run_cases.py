#!/usr/bin/env python3
"""Runs the dropped-in compiler tests: run_cases.py PVDMC [--update] [NAME...]

A case is a file tests/language/NAME.model (folders below count too). Its first line says what to
run, in the file's folder; `pvdmc` stands for the compiler and % for the file:

    // run: pvdmc --check %

What must come out lies beside it in NAME.expect: the status, then all of stdout and stderr under
headings of their own. --update writes that file anew from what comes out now. Files without a
run line are material for others (imports).

The examples of grammar/README.md are cases as well. A block marked `model` must pass --check; when
a block marked `text` follows it directly, it must fail with exactly that text (the file is then
called example.model).
"""
import concurrent.futures
import os
import pathlib
import shlex
import subprocess
import sys
import tempfile

TESTS = pathlib.Path(__file__).resolve().parent
ROOT = TESTS.parent
SECONDS = 120


def run(arguments, folder):
    try:
        done = subprocess.run(arguments, cwd=folder, capture_output=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return f"status: none after {SECONDS} s\n"
    text = f"status: {done.returncode}\n"
    for name, stream in ("stdout", done.stdout), ("stderr", done.stderr):
        if stream:
            text += f"---- {name}\n" + stream.decode("utf-8", "replace")
    return text


def file_cases(pvdmc):
    """(name, what to call for the outcome, file with the expected outcome)"""
    for path in sorted((TESTS / "language").rglob("*.model")):
        with open(path, encoding="utf-8", errors="replace") as file:
            head = file.readline().strip()
        if not head.startswith("// run: "):
            continue
        words = shlex.split(head[len("// run: "):])
        arguments = [pvdmc if word == "pvdmc" else path.name if word == "%" else word
                     for word in words]
        name = str(path.relative_to(TESTS / "language").with_suffix(""))
        yield name, lambda a=arguments, p=path: run(a, p.parent), path.with_suffix(".expect")


def first_difference(want, got):
    wants, gots = want.splitlines() + ["(the end)"], got.splitlines() + ["(the end)"]
    for number, (line, other) in enumerate(zip(wants, gots), 1):
        if line != other:
            return f"line {number} should be '{line}', is '{other}'"
    return "differs in its line ends"


def blocks(page):
    """(line, kind, text) of every fenced block of a page"""
    kind, start, lines = None, 0, []
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if not line.startswith("```"):
            lines.append(line)
        elif kind is None:
            kind, start, lines = line[3:].strip(), number, []
        else:
            yield start, kind, "\n".join(lines) + "\n"
            kind = None


def page_failures(pvdmc, page):
    """Checks the examples of a page; returns how many passed, and what failed."""
    passed, failures = 0, []
    found = list(blocks(page)) + [(0, "", "")]
    for (line, kind, text), (_, next_kind, next_text) in zip(found, found[1:]):
        if kind != "model":
            continue
        with tempfile.TemporaryDirectory() as folder:
            pathlib.Path(folder, "example.model").write_text(text)
            got = run([pvdmc, "--check", "-I", str(ROOT / "models"), "example.model"], folder)
        want = "status: 0\n"
        if next_kind == "text":
            want = "status: 1\n---- stderr\n" + next_text
        if got == want:
            passed += 1
        else:
            failures.append((f"{page.relative_to(ROOT)}:{line}", want, got))
    return passed, failures


def main(arguments):
    update = "--update" in arguments
    names = [argument for argument in arguments if not argument.startswith("-")]
    if not names:
        print(__doc__.splitlines()[0], file=sys.stderr)
        return 2
    pvdmc, wanted = os.path.abspath(names[0]), names[1:]
    passed, failures = 0, []
    cases = [case for case in file_cases(pvdmc)
             if not wanted or any(word in case[0] for word in wanted)]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        outcomes = list(pool.map(lambda case: case[1](), cases))
    for (name, _, expect), got in zip(cases, outcomes):
        if update:
            expect.write_text(got)
        want = expect.read_text(encoding="utf-8") if expect.exists() else ""
        if got == want:
            passed += 1
        else:
            failures.append((name, want, got))
    if not wanted and not update:
        more, wrong = page_failures(pvdmc, ROOT / "grammar/README.md")
        passed, failures = passed + more, failures + wrong
    for name, want, got in failures:
        print(f"FAIL {name}: {first_difference(want, got)}")
    print(f"{passed} passed, {len(failures)} failed")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
