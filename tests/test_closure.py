"""The code that a result depends on: every module that is imported counts, and nothing else does."""

import ast
import json
import sys
import types

import pytest
from commandline import program

from diffode import cache_folder, solvers
from diffode.closure import REST, SOURCES, WHOLE, parts_of, version_of
from diffode.closure.known import module_of
from diffode.closure.places import compiled, source_of
from diffode.closure.syntax import Module
from diffode.specs import parse_spec
from diffode.studies import parse_suite

ENGINE = ("diffode.studies.computation", WHOLE)
#: Solvers whose code lies in the most modules, and in how many parts of modules it does at least.
SOLVERS = {"amed:host=ipndm": 3, "rk_adaptive": 2, "scipy:RK45": 3, "seeds_2": 2, "ddim": 2, "universal": 3, "amed_learned": 15}


def roots_of(spec):
    return [ENGINE, *parts_of(solvers.registry.entry(parse_spec(spec)[0]).make)]


def literal_in(module, name):
    """A literal in the statements of a part that is no docstring and no piece of a formatted text."""
    statements, _ = SOURCES.module(module).kept(name)
    body, passed_over = ast.parse(source_of(module)).body, set()
    for statement in statements:
        for node in ast.walk(body[statement.place]):
            checked = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
            if checked or isinstance(node, ast.JoinedStr | ast.Expr):
                passed_over |= {id(inner) for inner in ast.walk(node)}
            elif isinstance(node, ast.Constant) and id(node) not in passed_over and node.lineno == node.end_lineno:
                return node
    return None


def with_another_literal(module, literal):
    lines = source_of(module).encode().splitlines(keepends=True)
    line = lines[literal.lineno - 1]
    value = {str: '"other"', type(None): "7"}.get(type(literal.value), "12345")
    lines[literal.lineno - 1] = line[: literal.col_offset] + value.encode() + line[literal.end_col_offset :]
    return b"".join(lines).decode()


def unmoved_by_changes(roots, without=()):
    """The parts of a closure of which a changed literal does not move the hash, and how many parts were changed."""
    parts = SOURCES.closure(roots).parts
    before, unmoved, tried = SOURCES.digest(parts), [], 0
    # What the registry lists is held by the options that a name presets, below.
    for module, name in sorted(parts - SOURCES.closure(without).parts - {("diffode.solvers.registry", REST)}):
        literal = literal_in(module, name)
        if literal is None:
            continue
        tried += 1
        sources = SOURCES.changed(module, with_another_literal(module, literal))
        if sources.digest(sources.closure(roots).parts) == before:
            unmoved.append((module, name))
    return unmoved, tried


def test_a_changed_literal_in_any_module_that_every_run_imports_changes_every_version():
    unmoved, tried = unmoved_by_changes([ENGINE])
    assert unmoved == []
    assert tried >= 40


@pytest.mark.parametrize(
    ("spec", "least"), [pytest.param(*s, marks=pytest.mark.slow) if s[0] == "amed_learned" else s for s in SOLVERS.items()]
)
def test_a_changed_literal_in_any_other_module_of_a_solvers_closure_changes_its_version(spec, least):
    unmoved, tried = unmoved_by_changes(roots_of(spec), without=[ENGINE])
    assert unmoved == []
    assert tried >= least


def test_a_changed_literal_in_any_module_behind_references_changes_their_version():
    unmoved, tried = unmoved_by_changes([("diffode.flows.integrated", WHOLE)])
    assert unmoved == []
    assert tried >= 18


REACHED = {
    "amed:host=ipndm": {("diffode.solvers.adams", "IPNDM"), ("diffode.solvers.runge_kutta", "")},
    "ipndm": {("diffode.solvers.runge_kutta", ""), ("diffode.flows.integrated", WHOLE)},
    "rk_adaptive": {("diffode.solvers.adaptive", "EmbeddedRungeKutta")},
    "scipy:RK45": {("diffode.solvers.adaptive", "RowEquation")},
}


@pytest.mark.parametrize("spec", REACHED)
def test_what_a_solver_uses_of_other_modules_is_in_its_closure(spec):
    assert REACHED[spec] <= SOURCES.closure(roots_of(spec)).parts


def test_what_a_learned_solver_runs_on_is_in_its_closure():
    assert ("diffode.learned.conditional.live", WHOLE) in SOURCES.closure(roots_of("amed_learned")).parts


def with_another_class(module, name):
    """The module's text with a literal of one class changed."""
    tree = ast.parse(source_of(module))
    body = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    literal = next(n for s in body.body[1:] for n in ast.walk(s) if isinstance(n, ast.Constant) and n.lineno == n.end_lineno)
    return with_another_literal(module, literal)


def test_a_member_of_a_family_can_change_without_the_others():
    text = with_another_class("diffode.solvers.adams", "DEIS")
    sources = SOURCES.changed("diffode.solvers.adams", text)
    moved = {
        spec: sources.digest(sources.closure(roots_of(spec)).parts) != SOURCES.digest(SOURCES.closure(roots_of(spec)).parts)
        for spec in ("deis", "ipndm", "amed:host=ipndm", "ddim", "dpmpp", "universal")
    }
    assert moved == {"deis": True, "ipndm": False, "amed:host=ipndm": False, "ddim": False, "dpmpp": False, "universal": False}


def test_no_solver_reaches_the_whole_zoo():
    made_in = {name: getattr(solvers.registry.entry(name).make, "__module__", "") for name in solvers.names()}
    families = {module for module in made_in.values() if module.startswith("diffode.solvers.")}
    assert len(families) > 10
    for name in solvers.names():
        reached = {module for module, _ in SOURCES.closure(roots_of(name)).parts}
        assert len(families & reached) < len(families) / 2, name
        assert not any(m.startswith(("diffode.verify", "diffode.adapters", "diffode.cli")) for m in reached), name


def test_comments_docstrings_and_layout_change_nothing():
    module = "diffode.solvers.adams"
    text = "# a comment\n" + source_of(module).replace("    def ", "\n    def ").replace(
        '        """', '        """Really: ', 1
    )
    sources = SOURCES.changed(module, text)
    assert sources.digest(sources.closure(roots_of("ipndm")).parts) == SOURCES.digest(SOURCES.closure(roots_of("ipndm")).parts)


def cell_of(solver, **changes):
    study = {"targets": ["gauss1d"], "paths": ["edm"], "grids": ["karras"], "nfe": [4], "seeds": [0], "points": 4}
    return parse_suite({"study": [{**study, "solvers": [solver], **changes}]}).cells[0]


def test_the_options_that_a_name_presets_are_part_of_the_key():
    keys = [
        program(f"""
            from diffode import solvers
            from diffode.studies import parse_suite
            from diffode.studies.cell_keys import cell_key

            solvers.register("preset", type(solvers.get("seeds")), order={order})
            study = dict(targets=["gauss1d"], paths=["edm"], grids=["karras"], nfe=[4], seeds=[0], points=4)
            suite = parse_suite(dict(study=[study | dict(solvers=["preset", "seeds_1", "ddim"])]))
            print(*(cell_key(cell) for cell in suite.cells))
        """).stdout.split()
        for order in (2, 3)
    ]
    assert [one == other for one, other in zip(*keys, strict=True)] == [False, True, True]


HELPER = "FACTOR = 1.0\n"
MINE = """
import functools
import diffode
from factor import FACTOR

class Own(diffode.GaussianMixture):
    def noised_view(self, *arguments):
        from inner import scaled
        return scaled(super().noised_view(*arguments))

diffode.targets.register("own", lambda: Own([0.5, 0.5], [[-1.0], [1.0]], [0.1, 0.1]))

def constant(outcome, value):
    return diffode.metrics.Measurement("constant", value * FACTOR)

diffode.metrics.register("constant", functools.partial(constant, value=VALUE))
"""


#: Each variant of the user's files is imported by a fork of its own: one start of Python serves them all.
IN_FORKS = """
import os, sys
from diffode.extensions import import_extension
from diffode.studies import parse_suite
from diffode.studies.cell_keys import cell_key

folder = sys.argv[1]
study = dict(paths=["edm"], grids=["karras"], nfe=[4], seeds=[0], points=4, solvers=["ddim"])
chosen = [dict(targets=["own"]), dict(targets=["gauss1d"], metrics=["constant"]), dict(targets=["gauss1d"])]
for variant in sorted(os.listdir(folder)):
    if os.fork() == 0:
        sys.path.insert(0, f"{folder}/{variant}")
        import_extension(f"{folder}/{variant}/mine.py")
        keys = [cell_key(parse_suite(dict(study=[study | more])).cells[0]) for more in chosen]
        print(variant, *keys, flush=True)
        os._exit(0)
    assert os.wait()[1] == 0
"""


def test_a_users_modules_count_with_what_they_import_themselves(tmp_path):
    """A file, another it imports at its top, one imported by a method, and what a partial function holds."""
    variants = {
        "as-it-is": ("FACTOR = 1.0\n", "def scaled(x):\n    return 1.0 * x\n", "1.0"),
        "commented": ("FACTOR = 1.0  # one\n", "def scaled(x):\n    return 1.0 * x\n", "1.0"),
        "factor": ("FACTOR = 2.0\n", "def scaled(x):\n    return 1.0 * x\n", "1.0"),
        "method": ("FACTOR = 1.0\n", "def scaled(x):\n    return 0.9 * x\n", "1.0"),
        "value": ("FACTOR = 1.0\n", "def scaled(x):\n    return 1.0 * x\n", "3.0"),
    }
    for name, (factor, inner, value) in variants.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "factor.py").write_text(factor)
        (tmp_path / name / "inner.py").write_text(inner)
        (tmp_path / name / "mine.py").write_text(MINE.replace("VALUE", value))
    lines = [line.split() for line in program(IN_FORKS, tmp_path).stdout.splitlines()]
    own, measured, neither = ({line[0]: line[1 + i] for line in lines} for i in range(3))
    assert {name for name in variants if own[name] == own["as-it-is"]} == {"as-it-is", "commented"}
    assert {name for name in variants if measured[name] != measured["as-it-is"]} == {"factor", "method", "value"}
    assert len(set(neither.values())) == 1


TYPED = """
import diffode

def scaled(x):
    return FACTOR * x

class Own(diffode.GaussianMixture):
    def noised_view(self, *arguments):
        return scaled(super().noised_view(*arguments))
"""


def test_a_class_without_a_text_is_known_by_its_compiled_code(monkeypatch):
    """As classes are that were typed into a session."""
    found = []
    for factor in ("1.0", "1.0", "0.9"):
        module = types.ModuleType("typed_in")
        monkeypatch.setitem(sys.modules, module.__name__, module)
        exec(compile(TYPED.replace("FACTOR", factor), "typed", "exec"), vars(module))
        found.append(compiled(module))
        assert (module.__name__, WHOLE) in SOURCES.closure(parts_of(module.Own)).parts
    assert found[0] == found[1] != found[2]


def test_libraries_are_no_part_of_a_closure():
    assert version_of("numpy", "json") == version_of()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFODE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "modules"


OF_ALL_KINDS = '''
"""A docstring."""
from __future__ import annotations
import a.b, c as d
from . import sibling
from .inner import one as two
if TYPE_CHECKING:
    from e import F
TABLE = {"\\udcff": (1, 2.5, None)}
class Own(F):
    x: int = 3
    def run(self): return get("ipndm:order=3"), a.b.call(self.x, name="text")
async def later(): import late
'''


def test_what_a_module_says_is_the_same_when_it_is_remembered(cache):
    texts = {"package": (OF_ALL_KINDS, True), "package.module": (OF_ALL_KINDS, False)}
    texts |= {name: (source_of(name), False) for name in ("diffode.solvers.adams", "diffode.closure.syntax", "diffode.specs")}
    for name, (text, is_package) in texts.items():
        fresh = Module.of(name, text, is_package=is_package)
        assert module_of(name, text, is_package=is_package) == fresh
        assert (cache / f"{name}.json").is_file()
        assert module_of(name, text, is_package=is_package) == fresh


def test_what_a_module_said_before_it_changed_is_forgotten(cache, monkeypatch):
    def said(text="X = 1", *, is_package=False):
        module = module_of("package.module", text, is_package=is_package)
        assert module == Module.of("package.module", text, is_package=is_package)
        return module

    assert said() != said("X = 2")
    relative = "from . import one"
    assert said(relative).bindings != said(relative, is_package=True).bindings
    said()
    file = cache / "package.module.json"
    whole = file.read_text()
    for damaged in (whole[:-3], whole.replace("1", "2"), whole.replace("Assign", "Assaign"), "", "\n", "x\n[]", "é"):
        file.write_text(damaged)
        said()
        assert file.read_text() == whole
    # A text that says something else under a checksum that fits was written for another text, or by another version.
    cache_folder.remember("modules", "package.module", {"digest": json.loads(whole.partition("\n")[2])["digest"]})
    said()
    assert file.read_text() == whole
    read = []
    monkeypatch.setattr(
        "diffode.closure.known.Module.of", lambda *args, **options: read.append(args) or Module("", (), {}, (), ())
    )
    module_of("package.module", "X = 1", is_package=False)
    assert not read
    monkeypatch.setattr("diffode.closure.known._reader", lambda: "another grammar")
    module_of("package.module", "X = 1", is_package=False)
    assert read


def test_a_folder_that_can_not_be_written_only_costs_time(cache):
    cache.parent.write_text("a file in the way")
    assert module_of("m", "X = 1", is_package=False) == Module.of("m", "X = 1", is_package=False)
    with pytest.raises(SyntaxError):
        module_of("m", "X =", is_package=False)
