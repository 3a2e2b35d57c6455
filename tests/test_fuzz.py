"""Random trials: a small sample of them ends in answers that keep their promises, or in refusals; planted faults are found."""

import json
import sys
from pathlib import Path

import pytest

from diffode.cli import main

sys.path.append(str(Path(__file__).parents[1] / "tools"))

import fuzz
from trials import runs, watch
from trials.case import KINDS, Case
from trials.trial import Played, Trial, play

SAMPLE = {"runs": 90, "files": 60, "commands": 8}


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    """Trials write where they are; the signals of this process stay as they are."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys.modules[main.__module__], "end_in_order", lambda: None)


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_of_trials_ends_in_sound_answers_or_refusals(kind):
    found, endings = [], set()
    for number in range(SAMPLE[kind]):
        case = Case(5, kind, number)
        played = case.play()
        endings.add(played.ending)
        found += [(str(case), finding, case.trial.program) for finding in played.findings]
    assert not found
    # A sample in which everything is refused, or nothing, tries little.
    assert endings == ({"answer", "refusal"} if kind != "commands" else {"answer"})


SOLVED = (
    "target = mixture(0, 'full', 2, 3)\npath = paths.get('edm')\nfield = diffode.exact_field(target, path)\n"
    "x = path.prior((4, 2), generator=0)\narguments = dict(solver='ddim', nfe=5, keep='all', on_failure='return')\n"
    "before = field.nfe\nsolution = diffode.solve(field, x, **arguments)\n"
)
WITH = "from dataclasses import replace\n"


@pytest.mark.parametrize(("program", "what", "words"), [
    ("1 / 0", "raw exception", "ZeroDivisionError"),
    ("raise diffode.errors.ArgumentError('')", "message", "empty"),
    ("raise diffode.errors.ArgumentError('GOT NAN'.lower())", "message", "nan that nobody gave"),
    ("raise diffode.errors.ArgumentError('x' * 6000)", "message", "longer"),
    ("raise diffode.errors.ArgumentError('SOMEWHERE'.lower())", "message", "names nothing"),
    ("file = 'things.npy'\nraise diffode.errors.ArgumentError('a file is damaged')", "message", "does not name the file"),
    ("np.float64(1e308) * np.float64(10)\n" + SOLVED, "warning", "RuntimeWarning: overflow"),
    ("raise MemoryError('much')", "memory", "MemoryError"),
    (SOLVED + "solution.x[1] = math.nan", "oracle", "silent non-finite rows: [1]"),
    (SOLVED + "solution.status[1] = 1", "oracle", "marked as not finite"),
    (SOLVED + "solution.states[2, 0] = math.nan", "oracle", "states not finite in a good row"),
    (SOLVED + "solution.times[2] = 100.0", "oracle", "not monotone"),
    (SOLVED + WITH + "solution = replace(solution, nfe=4)", "oracle", "nfe: the solution says 4, the field counted 5"),
    (SOLVED + "arguments['nfe'] = 3", "oracle", "nfe over the budget"),
    (SOLVED + WITH + "solution = replace(solution, x=solution.x.float())", "oracle", "shape: torch.float32"),
    (SOLVED + "solution.x[2] += 1e-3\nsolution.states[-1, 2] += 1e-3", "oracle", "alone: row 2 differs"),
    (SOLVED + WITH + "solution = replace(solution, message='lost')", "oracle", "message: 'lost'"),
])  # fmt: skip
def test_what_ought_not_to_happen_is_found(program, what, words):
    assert not play(Trial(SOLVED, runs.look)).findings
    found = play(Trial(program, runs.look if "solution" in program else lambda names: ())).findings
    assert any(finding.what == what and words in finding.detail for finding in found), found


def test_a_case_is_its_seed_kind_and_number():
    programs = [Case(seed, kind, number).trial.program for seed in (0, 1) for kind in KINDS for number in range(5)]
    assert programs == [Case(seed, kind, number).trial.program for seed in (0, 1) for kind in KINDS for number in range(5)]
    assert len(set(programs)) > 25
    assert [str(case) for case in fuzz.cases(0, {"runs": 2, "files": 1})] == ["runs:0", "files:0", "runs:1"]


class _Endless(Case):
    def play(self):
        try:
            while True:
                pass
        except Exception:
            return Played("answer")


def test_a_case_without_end_is_ended(monkeypatch):
    monkeypatch.setattr(watch, "LIMIT", 0.2)
    assert watch.watched(_Endless(0, "runs", 0)).findings[0].what == "hang"


def test_one_case_is_printed_as_a_program_that_runs(capsys):
    assert fuzz.main(["--case", "runs:1", "--seed", "17"]) == 0
    printed = capsys.readouterr().out
    assert Case(17, "runs", 1).trial.program in printed
    exec(compile(printed, "<printed>", "exec"), {})


def test_findings_are_summed_up_by_their_cause(tmp_path, monkeypatch):
    monkeypatch.setattr(fuzz, "played", lambda cases, jobs: ((case, play(Trial("1 / 0", runs.look)), 0.1) for case in cases))
    assert fuzz.main(["--runs", "3", "--files", "0", "--commands", "0", "--output", str(tmp_path / "x.jsonl")]) == 1
    entries = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    assert [entry["case"] for entry in entries] == ["runs:0", "runs:1", "runs:2"]
    assert {entry["what"] for entry in entries} == {"raw exception"}
