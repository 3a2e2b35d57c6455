"""The house: what may import what, how long files may be, what the package may not contain."""

import ast
import graphlib
import importlib
import importlib.util
import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "diffode"
FILES = sorted(PACKAGE.rglob("*.py"))

#: Rooms from the foundation up; a room imports from rooms above it in this list only.
ROOMS = (
    "errors", "arguments", "numerics", "cache_folder", "closure", "file_names", "facts_table", "output_files", "input_files",
    "extensions", "array_files", "tensor_files", "training_facts", "makers",
    "specs", "hippo", "engines", "randomness", "cache", "native", "paths", "targets", "sources", "statistics", "fields",
    "bridges", "grid_files", "grid_rules", "grid_menus", "grids", "tableau",
    "charts", "gaussian_charts", "flows", "maps", "references", "plot", "solvers", "learned", "metrics", "verify", "adapters",
    "testing", "studies", "cli", "__main__",
)  # fmt: skip


#: Rooms inside rooms, likewise.
INNER = {
    "learned": (
        "progress",
        "limit",
        "arguments",
        "trained",
        "fitting",
        "request",
        "universal",
        "tables",
        "grids",
        "conditional",
        "heads",
        "maps",
        "costs",
        "loading",
        "methods",
    ),
    # The last two keep former names alive.
    "verify": ("report", "field", "theory", "sampler", "maps", "verdict", "diagnosis"),
}


@pytest.fixture(scope="module")
def trees():
    """Each file of the package as a syntax tree."""
    return {file: ast.parse(file.read_text(encoding="utf-8")) for file in FILES}


@pytest.mark.parametrize("room", INNER)
def test_imports_point_up_the_list_inside_a_room_too(room, trees):
    for file in (PACKAGE / room).rglob("*.py"):
        own = file.relative_to(PACKAGE / room).parts[0].removesuffix(".py")
        if own == "__init__":
            continue
        for module in imported_modules(trees[file]):
            found = module.split(".")
            if found[:2] == ["diffode", room] and len(found) > 2:
                assert INNER[room].index(found[2]) <= INNER[room].index(own), f"{file} imports {module}"


def room_of(file):
    relative = file.relative_to(PACKAGE)
    return relative.parts[0].removesuffix(".py")


def imported_rooms(tree):
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "diffode":
            parts = node.module.split(".")
            names = [parts[1]] if len(parts) > 1 else [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name.split(".")[1] for alias in node.names if alias.name.startswith("diffode.")]
        yield from (name for name in names if name in ROOMS)


def test_imports_point_up_the_list(trees):
    assert [
        f"{file} imports {room}"
        for file, tree in trees.items()
        if file != PACKAGE / "__init__.py"
        for room in imported_rooms(tree)
        if ROOMS.index(room) > ROOMS.index(room_of(file))
    ] == []


@pytest.mark.parametrize("room", ["plot", "verify", "verify.field", "verify.theory", "verify.sampler", "verify.maps"])
def test_no_public_name_is_that_of_a_module_beside_it(room):
    """``from diffode.verify import order`` can mean one thing only."""
    folder = PACKAGE.joinpath(*room.split("."))
    modules = {f.stem for f in folder.glob("*.py")} | {f.parent.name for f in folder.glob("*/__init__.py")}
    public = getattr(importlib.import_module(f"diffode.{room}"), "__all__", ())
    assert not modules & set(public)


@pytest.mark.parametrize("file", [f for f in FILES if f.name == "__init__.py"], ids=lambda f: str(f.relative_to(PACKAGE)))
def test_public_names_are_written_out_and_are_there(file, trees):
    """A type checker sees only public names that are written out, and knows only those that something defines or imports."""
    tree = trees[file]
    written = [n.value for n in tree.body if isinstance(n, ast.Assign) and getattr(n.targets[0], "id", "") == "__all__"]
    module = importlib.import_module(".".join(file.parent.relative_to(ROOT).parts))
    assert len(written) == hasattr(module, "__all__")
    for names in written:
        listed = ast.literal_eval(names)
        assert len(set(listed)) == len(listed)
        assert list(listed) == list(module.__all__)
        assert set(listed) <= set(known_names(tree.body)), set(listed) - set(known_names(tree.body))


def known_names(body):
    """The names that statements define or import, if only for a type checker."""
    for node in body:
        if isinstance(node, ast.ImportFrom | ast.Import):
            yield from (alias.asname or alias.name for alias in node.names)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.If):
            yield from known_names(node.body)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (target.id for target in targets if isinstance(target, ast.Name))


#: Imports inside functions, each with what it is put off for; those of the command line are put off until a command needs them.
LAZY = {
    ("adapters/__init__.py", "diffode"): "an adapter's other library",
    ("adapters/__init__.py", "diffode.extensions"): "an adapter's other library",
    ("adapters/adapted.py", "diffode.verify.field.diagnosis"): "SymPy, which a field without mistakes needs not",
    ("bridges/transport.py", "scipy.optimize"): "a third of a second, for couplings of mixtures",
    ("bridges/transport.py", "scipy.sparse"): "the constraints of that programme",
    ("flows/differentiable.py", "scipy.integrate"): "half a second of SciPy, for flows that are integrated",
    ("flows/integrated.py", "scipy.integrate"): "half a second of SciPy, for flows that are integrated",
    ("grid_menus.py", "scipy.special"): "a third of a second, for quantiles of one grid",
    ("hippo/__init__.py", "diffode.hippo.module"): "PyTorch, which only the layer needs",
    ("native/objects.py", "diffode.native"): "what Numba compiles, where nothing is compiled yet",
    ("native/objects.py", "numba"): "half a second, where nothing is compiled yet",
    ("native/objects.py", "llvmlite.binding"): "a tenth of a second, for those who evaluate a mixture",
    ("learned/grids/compensation.py", "scipy.optimize"): "a third of a second, for a search that is done",
    ("learned/grids/simplex.py", "scipy.optimize"): "a third of a second, for a search that is done",
    ("numerics/splines.py", "scipy.interpolate"): "a third of a second, for statistics of a model",
    ("metrics/transport.py", "scipy.optimize"): "a third of a second, for an assignment",
    ("numerics/line_transport.py", "scipy.special"): "a third of a second, for distances on a line",
    ("numerics/quantiles.py", "scipy.special"): "a third of a second, for flows along a line",
    ("plot/memory.py", "matplotlib.pyplot"): "windows, which only new figures need",
    ("plot/appearance.py", "matplotlib.pyplot"): "windows, which only new figures need",
    ("solvers/baselines.py", "scipy.integrate"): "half a second of SciPy",
    ("solvers/solution.py", "diffode.plot"): "Matplotlib, which a run needs not",
    ("solvers/starts.py", "scipy.special"): "a third of a second, for starts that look odd",
    ("testing/__init__.py", "diffode.testing"): "hypothesis, which the laws need not",
    ("verify/sampler/__init__.py", "diffode.verify.report"): "names of the last version",
    ("verify/sampler/__init__.py", "diffode.verify.sampler"): "names of the last version",
}


def test_imports_inside_functions_are_those_that_are_listed(trees):
    found = set()
    for file, tree in trees.items():
        for function in ast.walk(tree):
            if isinstance(function, ast.FunctionDef) and room_of(file) != "cli":
                place = str(file.relative_to(PACKAGE))
                for node in ast.walk(function):
                    if isinstance(node, ast.ImportFrom):
                        found.add((place, node.module))
                    elif isinstance(node, ast.Import):
                        found.update((place, alias.name) for alias in node.names)
    assert found == set(LAZY)


MODULES = {".".join(f.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): f for f in FILES}


def imported_modules(tree):
    """Modules of the package that a file imports when it runs, inside functions too; what only a type checker reads is none."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                yield name if (name := f"{node.module}.{alias.name}") in MODULES else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        yield from imported_modules(node)


def test_no_modules_import_each_other_in_a_circle(trees):
    graph = {
        name: {other for other in imported_modules(trees[file]) if other in MODULES} - {name} for name, file in MODULES.items()
    }
    assert sum(map(len, graph.values())) > 400
    graphlib.TopologicalSorter(graph).prepare()


def test_a_file_can_be_read_in_one_sitting():
    around = [file for room in ("tests", "tools", "benchmarks", "examples") for file in (ROOT / room).glob("*.py")]
    assert len(around) > 100
    lengths = {str(file.relative_to(ROOT)): len(file.read_text(encoding="utf-8").splitlines()) for file in (*FILES, *around)}
    assert {file: lines for file, lines in lengths.items() if lines > 400} == {}


def test_no_pickle_no_eval_no_bare_assert(trees):
    for file, tree in trees.items():
        for node in ast.walk(tree):
            assert not isinstance(node, ast.Assert), f"{file}:{node.lineno}"
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("eval", "exec", "compile"), f"{file}:{node.lineno}"
            if isinstance(node, ast.Import):
                assert "pickle" not in [alias.name for alias in node.names], f"{file}:{node.lineno}"


def test_every_room_is_described_in_the_architecture():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for file in PACKAGE.iterdir():
        if file.name.startswith("__") or file.name in ("py.typed",):
            continue
        assert re.search(rf"\b{re.escape(file.name)}", text), f"{file.name} is missing from docs/architecture.md"


@pytest.mark.parametrize(
    "file",
    [file for folder in ("tools", "benchmarks", "examples") for file in sorted((ROOT / folder).rglob("*.py"))],
    ids=lambda file: str(file.relative_to(ROOT)),
)
def test_what_scripts_import_is_there(file):
    """Scripts that take minutes are run by no test: what they import of the package has to exist."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "diffode":
            module = importlib.import_module(node.module)
            for alias in node.names:
                is_module = importlib.util.find_spec(f"{node.module}.{alias.name}") if hasattr(module, "__path__") else None
                assert hasattr(module, alias.name) or is_module, f"{file.name} imports {alias.name} of {node.module}"


def test_files_that_tools_and_pages_name_exist():
    for file in (*(ROOT / "tools").rglob("*.py"), *(ROOT / "docs").glob("*.md"), ROOT / "CONTRIBUTING.md", ROOT / "README.md"):
        for name in re.findall(r"\btests/\w+\.py", file.read_text(encoding="utf-8")):
            assert (ROOT / name).is_file(), f"{file} names {name}"
        if file.suffix == ".md":
            for name in re.findall(
                r"`((?:tableau|fields|learned|solvers|studies|adapters|verify)/[\w/]+\.py)`", file.read_text(encoding="utf-8")
            ):
                assert (PACKAGE / name).is_file(), f"{file} names {name}"


def test_every_module_of_the_numerical_core_is_mutated_once():
    tool = runpy.run_path(str(ROOT / "tools" / "mutate.py"))
    listed = [module for place in tool["CORE"] for module in tool["files"](place)]
    assert len(set(listed)) == len(listed)
    assert [place for place in tool["CORE"] if not tool["files"](place)] == []
    assert set(listed) <= {file.relative_to(ROOT).as_posix() for file in FILES}
