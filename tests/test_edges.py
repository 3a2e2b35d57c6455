"""What happens at the edges: on the command line, in verdicts, files, caches, figures and metrics."""

import json
import pickle

import numpy as np
import planted_samplers
import pytest
import torch
from commandline import diffode as command
from test_cli import SUITE

from diffode import cache, paths, solvers, targets
from diffode.errors import ArgumentError, FileFormatError, UnknownNameError
from diffode.learned import family
from diffode.learned.training import train_table
from diffode.metrics.coupled import reduce
from diffode.numerics.exponential import phi
from diffode.solvers.runge_kutta import Heun
from diffode.studies import figures
from diffode.tableau import BrownianPath, Row, Tableau
from diffode.tensor_files import read_tensors, write_tensors
from diffode.verify.sampler import find_sampler
from diffode.verify.verdict import check_sampler

EDM = paths.get("edm")


# -- the command line ----------------------------------------------------------------------------------------------------


def test_recommendations_are_json_too_and_say_how_much_they_rest_on(tmp_path):
    (tmp_path / "tiny.toml").write_text(SUITE)
    missing = command("recommend", "--suite", "tiny.toml", "--nfe", "5", cwd=tmp_path, code=2).stderr
    assert "no result store" in missing
    assert "diffode bench tiny.toml" in missing
    command("bench", "tiny.toml", "--no-report", cwd=tmp_path)
    told = command("recommend", "--suite", "tiny.toml", "--nfe", "5", cwd=tmp_path).stdout
    ranked = json.loads(command("recommend", "--suite", "tiny.toml", "--nfe", "5", "--json", cwd=tmp_path).stdout)
    assert f"take {ranked['ranking'][0]['method']}" in told
    errors = [row["error"] for row in ranked["ranking"]]
    assert errors == sorted(errors)
    assert "one or two problems say little" in told


def test_cards_are_json_and_adaptive_solvers_have_no_tableau():
    card = json.loads(command("show", "ring8", "--json").stdout)
    assert card["name"] == "ring8"
    assert card["content"] == targets.get("ring8").content()
    assert "its steps depend on the solution" in command("show", "rk_adaptive").stdout


def test_a_misspelt_command_is_answered_with_the_right_one():
    assert "did you mean 'bench'" in command("bnech", code=2).stderr


# -- verdicts ------------------------------------------------------------------------------------------------------------


def at_zero(happens):
    """Euler's method, but for a last step to sigma = 0."""

    def sampler(field, x, times):
        if times[-1] == 0:
            return happens(field, x, times)
        return planted_samplers.euler(field, x, times)

    return sampler


def refuses(field, x, times):
    raise ArgumentError("give times above 0")


def crashes(field, x, times):
    raise ZeroDivisionError("sigma is 0")


@pytest.mark.parametrize(("happens", "passed", "text"), [
    (refuses, None, "refuses a last step to sigma = 0: give times above 0"),
    (crashes, False, "raises ZeroDivisionError in a last step to sigma = 0"),
    (lambda field, x, times: x * torch.nan, False, "non-finite values in a last step"),
])  # fmt: skip
def test_what_a_sampler_does_at_no_noise_is_told(happens, passed, text):
    found = check_sampler(find_sampler(at_zero(happens), order=1)).finding("sigma = 0")
    assert found.passed is passed
    assert text in found.text


def test_moments_of_a_sampler_that_is_not_affine_are_not_read_off():
    def clipped(field, x, times):
        return planted_samplers.euler(field, x, times).clamp(-1.5, 1.5)

    found = check_sampler(find_sampler(clipped)).finding("moments")
    assert found.passed is None
    assert "not affine" in found.text


def test_an_order_that_can_not_be_measured_says_why():
    def stops(field, x, times):
        if len(times) > 100:
            raise RuntimeError("too many steps")
        return planted_samplers.euler(field, x, times)

    found = check_sampler(find_sampler(stops, order=1)).finding("order")
    assert found.passed is False
    assert "raised RuntimeError" in found.text

    def overflows(field, x, times):
        return planted_samplers.euler(field, x, times) * (torch.inf if len(times) > 100 else 1)

    assert "not finite" in check_sampler(find_sampler(overflows, order=1)).finding("order").text


def test_samplers_are_classes_objects_and_functions_that_take_a_generator_by_place():
    assert find_sampler(Heun, options={"chart": "noise"}).claimed == 2
    assert find_sampler(solvers.get("ddim")).claimed == 1

    def by_place(field, x, times, generator):
        assert isinstance(generator, torch.Generator)
        return planted_samplers.euler(field, x, times)

    assert check_sampler(find_sampler(by_place, order=1)).passed


# -- files, caches, processes ----------------------------------------------------------------------------------------------


def test_the_cache_lies_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("DIFFODE_CACHE", str(tmp_path / "own"))
    assert cache.folder() == tmp_path / "own"
    monkeypatch.delenv("DIFFODE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.folder() == tmp_path / "diffode"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache.folder() == tmp_path / "home" / ".cache" / "diffode"


def test_an_entry_that_can_not_be_put_in_its_place_leaves_nothing_behind(monkeypatch, tmp_path):
    monkeypatch.setenv("DIFFODE_CACHE", str(tmp_path))
    (tmp_path / "key.safetensors").mkdir()
    cache.write("key", {"x": torch.ones(2)})
    assert [f.name for f in tmp_path.iterdir()] == ["key.safetensors"]
    assert cache.read("key") is None


def test_errors_cross_borders_between_processes():
    with pytest.raises(UnknownNameError) as caught:
        solvers.get("dpmp")
    again = pickle.loads(pickle.dumps(caught.value))  # noqa: S301
    assert type(again) is UnknownNameError
    assert str(again) == str(caught.value)
    assert "did you mean" in str(again)


@pytest.mark.parametrize(("name", "value", "words"), [
    ("times", torch.tensor([-1.0, 0.5], dtype=torch.float64), "times must be"),
    ("times", torch.tensor([1.0, 0.5]), "times must be"),
    ("outputs", torch.tensor([0, 7]), "outputs must name"),
    ("outputs", torch.tensor([0]), "outputs must name"),
    ("states_index", torch.tensor([[1, 0, 0]]), "states must be"),
    ("evaluations_index", torch.tensor([[5, 0]]), r"evaluations index \(5, 0\) is outside"),
    ("spans", torch.tensor([[1.0, 0.5]], dtype=torch.float64), "spans must be"),
])  # fmt: skip
def test_spoilt_tables_are_refused_by_what_is_wrong(tmp_path, name, value, words):
    file = tmp_path / "table.safetensors"
    Tableau("noise", (Row(1.0), Row(0.5, {0: 1.0}, {0: -0.5})), (0, 1), EDM).save(file)
    description, tensors = read_tensors(file, "diffode-tableau-1")
    write_tensors(file, tensors | {name: value}, description)
    with pytest.raises(FileFormatError, match=words):
        Tableau.load(file)


def test_a_table_that_draws_noise_is_the_same_after_a_file(tmp_path):
    table = solvers.get("ddim:eta=1").tableau(EDM, [80.0, 2.0, 0.5])
    table.save(tmp_path / "table.safetensors")
    again = Tableau.load(tmp_path / "table.safetensors")
    assert again.spans == table.spans
    assert len(again.spans) == table.draws == 2
    assert all(a.draws == b.draws for a, b in zip(again.rows, table.rows, strict=True))


# -- figures and numbers ---------------------------------------------------------------------------------------------------


def test_samples_of_an_image_target_are_drawn_beside_the_exact_ones():
    figure = figures.draw_images("patches-gmm", "edm", ["ddim", "dpmpp:order=2"], 6)
    images = [panel.images[0].get_array() for panel in figure.axes]
    assert len(images) % 3 == 0
    each = len(images) // 3
    exact, euler, second = (
        torch.tensor([panel.data.tolist() for panel in images[k * each : (k + 1) * each]]) for k in range(3)
    )
    # The same starts: a better solver's pictures are nearer to the exact ones.
    assert float((second - exact).norm()) < float((euler - exact).norm())
    assert figure.axes[each].get_ylabel().startswith("ddim\nNFE 6")


def test_reductions_are_what_they_are_called():
    distances = torch.tensor([3.0, 4.0, 0.0, 5.0, 1.0], dtype=torch.float64)
    assert [reduce(distances, name) for name in ("mean", "max", "median")] == [2.6, 5.0, 3.0]
    assert reduce(distances, "rms") == pytest.approx((51 / 5) ** 0.5)


def test_phi_0_is_the_exponential_of_tensors_too():
    z = torch.tensor([-3.0, 0.0, 0.5], dtype=torch.float64)
    torch.testing.assert_close(phi(0, z), z.exp())


def test_a_table_in_scores_carries_a_gaussian_as_one_in_noises_does():
    times = [80.0, 5.0, 1.0, 0.1]
    noise = solvers.get("ddim").tableau(EDM, times)
    # eps = -sigma s.
    rows = [
        Row(r.time, r.states, {j: -b * EDM.sigma(noise.rows[j].time) for j, b in r.evaluations.items()}) for r in noise.rows
    ]
    score = Tableau("score", tuple(rows), noise.outputs, EDM)
    mean, variance = torch.tensor([0.3, -1.0]).double(), torch.tensor([0.2, 2.0]).double()
    one, two = (t.propagate(mean, variance) for t in (noise, score))
    torch.testing.assert_close(one.mean, two.mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(one.variance, two.variance, rtol=1e-12, atol=1e-12)


def test_a_brownian_path_goes_on_before_its_beginning():
    """A run that starts at more noise than the one before finds new increments there, and the old ones where it was."""
    late, early = (solvers.get("ddim:eta=1").tableau(EDM, times) for times in ([5.0, 1.0, 0.5], [80.0, 20.0, 5.0, 1.0, 0.5]))
    path = BrownianPath((20_000, 1), seed=0)
    first = path.draws(late)
    both = path.draws(early)
    torch.testing.assert_close(both[-2:], first)
    assert float(both[0].std()) == pytest.approx(1, abs=0.03)
    assert abs(float((both[0] * both[1]).mean())) < 0.03
    assert abs(float((both[1] * first[0]).mean())) < 0.03


def test_mixtures_of_the_family_lie_on_lattices_too():
    """Points within a few hundredths of whole numbers, as many a side as give every mode a place."""

    class Drawn:
        def __init__(self, seed):
            self.rng = np.random.default_rng(seed)

        def __getattr__(self, name):
            return (lambda *_: "lattice") if name == "choice" else getattr(self.rng, name)

    for modes, dim, side in ((8, 1, 8), (20, 2, 5), (27, 3, 3), (2, 40, 2)):
        means = family._means(Drawn(3), modes, dim)
        assert means.shape == (modes, dim)
        assert 0 < np.abs(means - means.round()).max() < 0.06
        assert 0 <= means.round().min() <= means.round().max() <= side - 1


def test_a_start_without_a_grid_is_taken_on_karras():
    trained = train_table("bimodal1d", 3, start="ddim", points=64, seconds=1)
    assert trained.checkpoint.begun_from == "ddim @ karras"
