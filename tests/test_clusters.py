"""The engine of a dask cluster: real schedulers and workers, killed in the middle, and the store as if nothing had happened."""

import dataclasses
import os
import re
import subprocess
import sys
import time

import pytest
from commandline import diffode
from small_suite import SMALL, SOLVER, small

from diffode import engines
from diffode.engines import companion
from diffode.errors import ArgumentError, WorkerError, WorkerWarning
from diffode.studies import Store, keyed_cells, parse_suite, run_suite

pytest.importorskip("distributed", reason="dask is an extra, diffode[cluster]")

#: A metric that takes so long that something can be killed meanwhile.
SLOW = """
import time
import diffode


def slow(outcome):
    time.sleep(0.05)
    return diffode.metrics.Measurement("slow", float(outcome.solution.x.sum()))


diffode.metrics.register("slow", slow)
"""


class Cluster:
    """A scheduler and its workers, each a process of its own."""

    def __init__(self, folder):
        self.folder, self.file = folder, folder / "scheduler.json"
        self.processes = []
        self.begin()

    @property
    def engine(self):
        return f"dask:scheduler_file={self.file}"

    def begin(self, workers=2):
        self.file.unlink(missing_ok=True)
        self.scheduler = self._begin("scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard")
        while not self.file.exists() or not self.file.read_text().strip().endswith("}"):
            time.sleep(0.02)
        self.workers = [self.begin_worker() for _ in range(workers)]

    def begin_worker(self, **environment):
        words = ("--no-nanny", "--no-dashboard", "--nthreads", "1", "--death-timeout", "20", "--local-directory", self.folder)
        return self._begin("worker", *words, **environment)

    def _begin(self, kind, *words, **environment):
        command = [sys.executable, "-m", f"distributed.cli.dask_{kind}", "--scheduler-file", self.file, *words]
        process = subprocess.Popen(
            list(map(str, command)), cwd=self.folder, env={**os.environ, **environment},
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self.processes.append(process)
        return process

    def end(self):
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.wait()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    made = Cluster(tmp_path_factory.mktemp("cluster"))
    yield made
    made.end()


def kept(suite, file):
    """The stored results without what differs from run to run."""
    with Store(file) as store:
        return [dataclasses.replace(r, seconds=None, environment=None) for r in store.get(keyed_cells(suite))]


def slow_suite(folder):
    """A suite of some seconds on two workers, in eight groups, whose metric a user wrote."""
    (folder / "slow.py").write_text(SLOW)
    study = {
        "targets": ["gauss1d", "ring8"],
        "solvers": ["ddim", "heun"],
        "grids": ["karras", "log_snr"],
        "paths": ["edm", "vp"],
    }
    study["metrics"] = ["endpoint", "slow"]
    return parse_suite({**SMALL, "imports": [str(folder / "slow.py")], "study": [study]})


@pytest.mark.slow
def test_killed_workers_and_schedulers_lose_nothing_that_was_stored(cluster, tmp_path):
    """A worker is killed in the middle of the first run, and the scheduler in that of the second; the third ends."""
    suite = slow_suite(tmp_path)
    run_suite(suite, tmp_path / "alone.sqlite", jobs=1)
    file = tmp_path / "s.sqlite"

    def kill_worker(done, total):
        if done and cluster.workers[0].poll() is None:
            cluster.workers[0].kill()

    summary = run_suite(suite, file, engine=cluster.engine, progress=kill_worker)
    assert (summary.computed, summary.failed) == (32, 0)
    assert cluster.workers[0].wait() != 0
    assert kept(suite, file) == kept(suite, tmp_path / "alone.sqlite")

    def kill_scheduler(done, total):
        if done:
            cluster.scheduler.kill()

    file = tmp_path / "again.sqlite"
    with pytest.raises(WorkerError, match=r"scheduler tcp://127.0.0.1:\d+ is lost.* of 32 runs are stored") as lost:
        run_suite(suite, file, engine=cluster.engine, progress=kill_scheduler)
    known = int(re.search(r"(\d+) of 32 runs", str(lost.value))[1])
    assert 0 < known < 32
    cluster.begin()
    assert run_suite(suite, file, engine=cluster.engine).computed == 32 - known
    assert kept(suite, file) == kept(suite, tmp_path / "alone.sqlite")


def test_a_users_code_reaches_workers_in_other_folders_and_changes_with_it(cluster, tmp_path, monkeypatch):
    """The command line, on workers that were begun before the file was written; a changed file is another study."""
    monkeypatch.setenv("DIFFODE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "suite.toml").write_text(
        '[[study]]\ntargets = ["gauss1d"]\npaths = ["edm"]\ngrids = ["karras"]\nnfe = [4]\nseeds = [0]\n'
        'points = 4\nsolvers = ["ddim", "mine"]\n'
    )
    words = ("bench", "suite.toml", "--import", "mine.py", "--no-report", "--json", "--engine", cluster.engine)
    found = []
    for factor in ("1.0", "0.5"):
        (tmp_path / "mine.py").write_text(SOLVER.replace("FACTOR", factor))
        done = diffode(*words, cwd=tmp_path)
        assert f"{2 if factor == '1.0' else 1} computed" in done.stderr
        assert "0 failed" in done.stderr
        found.append(done.stdout)
    assert found[0] != found[1]


def test_a_worker_without_the_package_is_named_and_left_out(cluster, tmp_path):
    """Its folder shadows diffode by a package that has no version."""
    (tmp_path / "diffode").mkdir()
    (tmp_path / "diffode" / "__init__.py").write_text("")
    other = Cluster.begin_worker(cluster, PYTHONPATH=str(tmp_path))
    try:
        from distributed import Client

        with Client(scheduler_file=str(cluster.file), set_as_default=False) as client:
            client.wait_for_workers(3, timeout=20)
        with pytest.warns(WorkerWarning, match=r"worker tcp://127.0.0.1:\d+ is left out: it has no diffode .*pip install"):
            summary = run_suite(small(), tmp_path / "s.sqlite", engine=cluster.engine)
        assert (summary.computed, summary.failed) == (8, 0)
    finally:
        other.kill()
        other.wait()


def test_any_function_of_a_file_runs_on_a_cluster(cluster, tmp_path):
    (tmp_path / "squares.py").write_text("def squared(number):\n    print(number)\n    return [number, number**2]\n")
    place = f"{tmp_path / 'squares.py'}:squared"
    assert dict(engines.each(place, [1.5, 2], engine=cluster.engine)) == {0: [1.5, 2.25], 1: [2, 4]}
    (tmp_path / "fails.py").write_text("def squared(number):\n    raise OSError('no weights here')\n")
    place = f"{tmp_path / 'fails.py'}:squared"
    with pytest.raises(WorkerError, match=r"the work failed on worker tcp.*: OSError: no weights here"):
        list(engines.each(place, [1.5, 2], engine=cluster.engine))


def test_workers_that_lack_what_a_users_module_needs_are_named(cluster, tmp_path, monkeypatch):
    """A module that only imports where the study begins, since it reads a variable that the workers have not."""
    monkeypatch.setenv("ONLY_HERE", "1")
    (tmp_path / "here.py").write_text("import os\nos.environ['ONLY_HERE']\ndef squared(number):\n    return number\n")
    with (
        pytest.warns(WorkerWarning, match=r"is left out: .*here.py' fails when imported: KeyError"),
        pytest.raises(WorkerError, match=r"no worker can do this work: tcp.*fails when imported.*; tcp.*fails when imported"),
    ):
        list(engines.each(f"{tmp_path / 'here.py'}:squared", [1.5, 2], engine=cluster.engine))


def test_a_cluster_of_this_machine_is_begun_for_the_run(tmp_path, monkeypatch):
    """One whose companions are killed over a group says so, and has no companion left."""
    suite = small()
    run_suite(suite, tmp_path / "alone.sqlite", jobs=1)
    run_suite(suite, tmp_path / "s.sqlite", engine="dask", jobs=1)
    assert kept(suite, tmp_path / "s.sqlite") == kept(suite, tmp_path / "alone.sqlite")
    (tmp_path / "killed.py").write_text(
        "import os, signal\nimport diffode\n\n"
        "def killed(outcome):\n    os.kill(os.getpid(), signal.SIGKILL)\n\ndiffode.metrics.register('killed', killed)\n"
    )
    study = {"targets": ["gauss1d"], "solvers": ["ddim"], "metrics": ["endpoint", "killed"]}
    suite = parse_suite({**SMALL, "imports": [str(tmp_path / "killed.py")], "study": [study]})
    with pytest.raises(WorkerError, match=r"killed over the same group, 3 times.*0 of 2 runs are stored"):
        run_suite(suite, tmp_path / "k.sqlite", engine="dask", jobs=1)
    assert not companion.COMPANIONS._idle


def test_a_scheduler_that_does_not_answer_is_an_error_that_says_how_to_begin_one(tmp_path, monkeypatch):
    monkeypatch.setattr("diffode.engines.cluster._ANSWER", 0.5)
    with pytest.raises(ArgumentError, match=r"no dask scheduler answers at 127.0.0.1:9 .*begin one with `dask scheduler`"):
        run_suite(small(), tmp_path / "s.sqlite", engine="dask://127.0.0.1:9")
    with pytest.raises(ArgumentError, match=r"no dask scheduler answers at nowhere.json"):
        run_suite(small(), tmp_path / "s.sqlite", engine="dask:scheduler_file=nowhere.json")


def test_a_scheduler_without_workers_is_an_error_that_says_how_to_begin_some(tmp_path):
    from distributed import LocalCluster

    with LocalCluster(n_workers=0, processes=False, dashboard_address="127.0.0.1:0") as empty:
        engine = engines.get(f"dask:address={empty.scheduler_address},patience=0")
        with pytest.raises(WorkerError, match=r"has had no workers for 0 s: begin some with `dask worker inproc"):
            run_suite(small(), tmp_path / "s.sqlite", engine=engine)


def test_without_dask_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ArgumentError, match=r"pip install 'diffode\[cluster\]'"):
        run_suite(small(), tmp_path / "s.sqlite", engine="dask")
