"""Work for an engine: a function named by its place and the code that it needs, all of it plain data, and its results."""

from __future__ import annotations

import functools
import importlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from diffode.closure import version_of
from diffode.engines.code import Code
from diffode.errors import ArgumentError, WorkerError
from diffode.extensions import import_extension, origin

#: An item of work with its number, as plain data.
Numbered = tuple[int, Any]


class Engine(Protocol):
    """What runs work: called with a function and items, it gives the function's results as they come.

    Results may come in any order, and more than once. The function can be pickled, and knows on any machine with diffode how
    to make ready what it needs; an item and a result are plain data (what JSON can hold) of some kilobytes. So ``map``, or the
    ``map`` of a pool of anyone's, is an engine. One whose workers are begun by the calling process on its own machine says so
    by an attribute ``begins_workers = True``, and is spared what is for others: code, and the proof that it is the same.
    """

    def __call__(self, function: Callable[[Numbered], Numbered], items: Sequence[Numbered], /) -> Iterable[Numbered]:
        """The function's results for the items, as they come."""


@dataclass(frozen=True)
class Work:
    """A function of an item, as plain data: it calls what ``function`` names, in a process that has the code for it.

    Attributes:
        function: ``module:name`` or ``file.py:name``, whose argument and result are plain data.
        imports: modules and files that are imported before.
        code: a user's modules and files, for workers elsewhere.
        version: the hash of the function's code, which a worker's must equal; an empty text is not compared.
    """

    function: str
    imports: tuple[str, ...] = ()
    code: Code | None = None
    version: str = ""

    def __call__(self, numbered: Numbered) -> Numbered:
        """The result for an item with a number, with this number; WorkerError if the process has other code."""
        number, item = numbered
        function = _ready(self)
        # Each process has one thread, since two processes with two threads each slow each other down on two cores. A process
        # that only hands work on never loads PyTorch.
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(1)
        return number, function(item)

    def make_ready(self) -> None:
        """Lay out the code and import it; what fails here fails because of the process, not of an item."""
        _ready(self)

    @property
    def text(self) -> str:
        """The work as a text, which :meth:`read` reads."""
        parts = (self.function, list(self.imports), None if self.code is None else self.code.plain(), self.version)
        return json.dumps(parts)

    @staticmethod
    def read(text: str) -> Work:
        """The work that a text holds."""
        function, imports, code, version = json.loads(text)
        return Work(function, tuple(imports), None if code is None else Code.read(code), version)

    def elsewhere(self, specs: Iterable[str] = ()) -> Work:
        """The same work with the code that workers on other machines need; ``specs`` name files and places of the user."""
        code = Code.of([*self.imports, self.function.rpartition(":")[0]], specs)
        return Work(self.function, self.imports, code, version_of(named(self.function)))


@functools.lru_cache(maxsize=1)
def _ready(work: Work) -> Callable[[Any], Any]:
    """The function of some work, when its code is in place and its modules are imported."""
    if work.code is not None:
        work.code.lay_out()
    for module in work.imports:
        import_extension(module)
    function = named(work.function)
    if work.version and (found := version_of(function)) != work.version:
        raise WorkerError(
            f"this worker's code of {work.function} is another (version {found[:12]}, expected {work.version[:12]}): install "
            "the same diffode on all machines, and start the workers again"
        )
    return function


def named(function: str) -> Callable[[Any], Any]:
    """The function that a place names."""
    module, _, name = function.rpartition(":")
    if not module or not name:
        raise ArgumentError(f"function must be 'module:name' or 'file.py:name', got {function!r:.80}")
    try:
        found: Callable[[Any], Any] = getattr(import_extension(module) if module.endswith(".py") else _imported(module), name)
    except (ImportError, AttributeError) as error:
        raise ArgumentError(f"there is no function {function!r:.80}: {error}") from error
    return found


def _imported(module: str) -> Any:
    return importlib.import_module(module)


def place_of(function: Callable[..., Any] | str) -> str:
    """The place of a function: ``module:name``, or ``file.py:name`` for one of a program.

    Raises:
        ArgumentError: if it is not defined at the top of a module or of a file.
    """
    if isinstance(function, str):
        return function
    found, module = origin(function), getattr(function, "__module__", "")
    if found is None or "." in found[1]:
        raise ArgumentError(f"{function!r} must be defined at the top of a module or file, where workers can find it")
    if module == "__main__" or module.startswith("diffode_extension_"):
        if not found[0].endswith(".py"):
            raise ArgumentError(f"{found[1]} is defined in no file, where workers could find it: put it into one")
        return f"{found[0]}:{found[1]}"
    return f"{module}:{found[1]}"


def results(engine: Engine, work: Work, items: Sequence[Any]) -> Iterator[tuple[int, Any]]:
    """The number of each item and its result, as they come, each once.

    Raises:
        WorkerError: if the engine ends without all of them.
    """
    waiting = set(range(len(items)))
    given = engine(work, list(enumerate(items)))
    if not isinstance(given, Iterable):
        raise WorkerError(f"an engine must give (number, result) as they come, got a {type(given).__name__}")
    for numbered in given:
        if not isinstance(numbered, tuple | list) or len(numbered) != 2 or type(numbered[0]) is not int:
            raise WorkerError(f"an engine must give (number, result), got {numbered!r:.80}")
        number, result = numbered
        if number in waiting:
            waiting.remove(number)
            yield number, result
    if waiting:
        raise WorkerError(
            f"the engine gave results for {len(items) - len(waiting):,} of {len(items):,} groups, and then no more"
        )
