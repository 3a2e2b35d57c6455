"""The record of what refusals say: ``data/refusals.json`` holds the texts that tests bring about, by test.

``python tests/refusals.py [FILE ...]`` runs these files of tests, or all, twice, the second time without machine code, and
records the texts that are the same in both runs. Texts are seen by ``with pytest.raises(...)`` and by commands that are to
fail. A test that is not in the record is not held to it.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

FILE = Path(__file__).parent / "data" / "refusals.json"
#: The environment's name for the folder in which texts are kept while they are recorded.
FOLDER = "DIFFODE_REFUSALS"
#: Most texts of a test that are recorded; those of more are random.
MOST = 60
#: Refusals quote texts of Python and of libraries, which are those of a version.
VERSIONS = {
    "python": f"{sys.version_info.major}.{sys.version_info.minor}",
    **{name: importlib.metadata.version(name).partition("+")[0] for name in ("torch", "numpy")},
}
#: Folders in which tests put files, with all that lies in them; the one of a run of pytest is added.
FOLDERS = [tempfile.gettempdir(), str(Path(tempfile.gettempdir()).resolve())]
#: What is another in each run or on another machine: folders, addresses, digests of numbers, digits that are rounding, seconds,
#: bars of progress, versions; and lists of all names.
OTHERS = (
    (re.compile(r"/[^\s'\"]*(pytest-of-|diffode-tests-)[^\s'\";:,)\]]*"), "<place>"),
    (re.compile(re.escape(str(Path(__file__).parents[1]))), "<here>"),
    (re.compile(r"/tmp/[^\s'\";:,)\]]*"), "<place>"),
    (re.compile(r".*(?:━|left: ).*\n?"), ""),
    (re.compile(r"0x[0-9a-f]{4,}"), "<address>"),
    (re.compile(r"\b(?=[0-9a-f]*[a-f])(?=[0-9a-f]*\d)[0-9a-f]{12,}\b"), "<digest>"),
    (re.compile(r"(\.\d{8})\d{3,}"), r"\1"),
    (re.compile(r"\b\d+(?:\.\d+)? s\b"), "<seconds>"),
    (re.compile(r"PyTorch \d[\w.+]*"), "PyTorch <version>"),
    (re.compile(r"\d\.?\d*e-(0[7-9]|[1-9]\d)"), "<small>"),
    (re.compile(r"known: (?:[^,\n]+, ){6,}[^\n]*"), "known: <names>"),
)


def record() -> dict[str, Any]:
    """The versions and the texts, by test, that are recorded."""
    return json.loads(FILE.read_text(encoding="utf-8")) if FILE.is_file() else {"versions": VERSIONS, "texts": {}}


def known() -> dict[str, list[str]]:
    """The texts by test; none where the record is of other versions."""
    kept = record()
    return kept["texts"] if kept["versions"] == VERSIONS else {}


def settled(text: str) -> str:
    """A text without what is another in each run."""
    for folder in sorted(set(FOLDERS), key=len, reverse=True):
        text = re.sub(rf"{re.escape(folder)}/[^\s'\";:,)\]]*", "<place>", text)
    for pattern, word in OTHERS:
        text = pattern.sub(word, text)
    return text.strip()


def current() -> str:
    """The test that runs, without its parameters."""
    return os.environ.get("PYTEST_CURRENT_TEST", "").partition("[")[0].partition(" (")[0]


def look(text: str) -> None:
    """Hold a refusal to the record, or keep it where texts are recorded."""
    __tracebackhide__ = True
    test, text = current(), settled(text)
    if folder := os.environ.get(FOLDER):
        with (Path(folder) / f"{os.getpid()}.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps([test, text]) + "\n")
    elif (texts := _KNOWN.get(test)) is not None and text not in texts:
        told = "".join(f"\n  {one}" for one in texts)
        raise AssertionError(
            f"a refusal is not as it was recorded:\n  {text}\nRecorded for {test} are{told}\n"
            f"If the text is meant, run: python tests/refusals.py {test.partition('::')[0]}"
        )


class Held:
    """``pytest.raises``, whose refusals by this package are held to the record."""

    def __init__(self, expected: Any):
        self.expected = expected

    def __enter__(self) -> Any:
        self.found = self.expected.__enter__()
        return self.found

    def __getattr__(self, name: str) -> Any:
        return getattr(self.expected, name)

    def __exit__(self, *raised: Any) -> Any:
        __tracebackhide__ = True
        done = self.expected.__exit__(*raised)
        if done and type(self.found.value).__module__.startswith("diffode"):
            look(str(self.found.value))
        return done


def hold() -> None:
    """Hold what ``pytest.raises`` sees, from now on."""
    plain = pytest.raises

    def raises(*arguments: Any, **options: Any) -> Any:
        expected = plain(*arguments, **options)
        return Held(expected) if hasattr(expected, "__enter__") else expected

    pytest.raises = raises


def kept(folder: Path) -> dict[str, set[str]]:
    """What a run has kept, by test."""
    found: dict[str, set[str]] = {}
    for file in folder.glob("*.jsonl"):
        for test, text in map(json.loads, file.read_text(encoding="utf-8").splitlines()):
            found.setdefault(test, set()).add(text)
    return found


def write(first: dict[str, set[str]], second: dict[str, set[str]], *, whole: bool) -> None:
    """Put what two runs agree on in the record: in place of it all, or of what stands there of the same files."""
    files = {test.partition("::")[0] for test in first}
    texts = {} if whole else {test: of for test, of in known().items() if test.partition("::")[0] not in files}
    texts |= {test: sorted(of) for test, of in first.items() if of == second.get(test) and len(of) <= MOST}
    new = {"versions": VERSIONS, "texts": dict(sorted(texts.items()))}
    FILE.write_text(json.dumps(new, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def main(files: list[str]) -> None:
    if files and (told := record()["versions"]) != VERSIONS:
        raise SystemExit(f"the record is of {told}, and this is {VERSIONS}: record with those versions, or all files anew")
    runs = []
    for more in ({}, {"DIFFODE_NATIVE": "0"}):
        with tempfile.TemporaryDirectory() as folder:
            # Tests play users who may not write what others own.
            Path(folder).chmod(0o777)
            command = [sys.executable, "-m", "pytest", "-n", "auto", "-q", *files]
            around = {**os.environ, FOLDER: folder, **more}
            done = subprocess.run(command, env=around, cwd=Path(__file__).parents[1], umask=0)
            if done.returncode and not more:
                raise SystemExit("tests fail, so nothing is recorded: mend them first")
            runs.append(kept(Path(folder)))
    write(*runs, whole=not files)


_KNOWN = known()

if __name__ == "__main__":
    main(sys.argv[1:])
