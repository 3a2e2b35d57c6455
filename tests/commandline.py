"""Commands and programs as a user meets them: in a process of its own.

Starting Python and importing PyTorch takes seconds, and no claim here is about that: each process is a copy of one that has
imported everything before. What is about starting itself, about imports or about memory runs ``sys.executable``.
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
import textwrap
import threading
from multiprocessing.reduction import DupFd
from pathlib import Path

from refusals import look

_COPIES = multiprocessing.get_context("forkserver")
_COPIES.set_forkserver_preload([
    "torch", "scipy.optimize", "scipy.stats", "matplotlib.figure", "joblib", "rich.console", "pytest",
    *(f"diffode.{room}" for room in ("adapters", "learned", "metrics", "solvers", "studies", "studies.report", "verify.field")),
    *(f"diffode.cli.{file.stem}" for file in (Path(__file__).parents[1] / "diffode" / "cli").glob("*.py")),
])  # fmt: skip


def diffode(*arguments, cwd=None, code=0):
    """Run the command and hold it to an exit code, unless that is None."""
    return _held(_command, arguments, cwd, code)


def program(text, *arguments, cwd=None, code=0):
    """Run a text of Python as a file that holds it would run."""
    return _held(_program, (textwrap.dedent(text), *arguments), cwd, code)


def script(file, *, cwd=None, code=0):
    """Run a file of Python."""
    return _held(_script, (file,), cwd, code)


def started(text):
    """The process that runs a text of Python, to be killed."""
    return _start(_program, (textwrap.dedent(text),), None, ())


def _held(work, arguments, cwd, code):
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = _start(work, arguments, cwd, [DupFd(stream.fileno()) for stream in (out, err)])
        process.join()
        texts = []
        for stream in (out, err):
            stream.seek(0)
            texts.append(stream.read().decode())
    assert code is None or process.exitcode == code, "".join(texts)
    if code:
        look(texts[1])
    return subprocess.CompletedProcess(arguments, process.exitcode, *texts)


def _start(work, arguments, cwd, streams):
    words = [str(word) for word in arguments]
    process = _COPIES.Process(target=_begin, args=(work, words, str(cwd or Path.cwd()), dict(os.environ), streams))
    process.start()
    return process


def _begin(work, arguments, cwd, environment, streams):
    for number, stream in enumerate(streams, start=1):
        os.dup2(stream.detach(), number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    try:
        work(arguments)
    finally:
        # As at the end of any program; multiprocessing would wait for the workers of joblib before it told them to end.
        threading._shutdown()


def _command(arguments):
    sys.argv = ["diffode", *arguments]
    runpy.run_module("diffode", run_name="__main__", alter_sys=True)


def _program(arguments):
    sys.argv = ["-c", *arguments[1:]]
    exec(compile(arguments[0], "<text>", "exec"), {"__name__": "__main__"})


def _script(arguments):
    sys.argv = list(arguments)
    sys.path.insert(0, str(Path(arguments[0]).parent))
    runpy.run_path(arguments[0], run_name="__main__")
