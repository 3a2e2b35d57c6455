"""Requests for jump tables, heads and maps on nodes: wrong ones are named, equal ones repeat, the command line takes them."""

import json

import pytest
from click.testing import CliRunner

from diffode.cli import show_command, train_command
from diffode.errors import ArgumentError
from diffode.learned import train, train_head, train_nodes


@pytest.mark.parametrize(
    ("method", "target", "nfe", "options", "words"),
    [
        ("jump", "ring8", 0, {}, "nfe must be an integer >= 1"),
        ("head", "ring8", 0, {}, "nfe must be an integer >= 1"),
        ("nodes", "ring8", 0, {}, "nfe must be an integer >= 1"),
        ("nodes", "ring8", 2, {}, "a map on nodes costs one call: nfe must be 1, got 2"),
        ("nodes", "digits-gmm10", 1, {}, "nodes are for fields in one or two dimensions, this one has 64"),
        ("nodes:count=3", "ring8", 1, {}, "count must be an integer from 4 to 1000, got 3"),
        ("nodes:kind=quintic", "ring8", 1, {}, "kind must be one of None, linear, cubic, got 'quintic'"),
        ("nodes:span=0", "ring8", 1, {}, r"span must be a number in \[0.1, 40\), got 0"),
        ("nodes", "ring8", 1, {"steps": 3}, "nodes has no number of steps"),
        ("head:kind=forest", "ring8", 1, {}, "kind must be one of None, features, network, got 'forest'"),
        ("head:units=0", "ring8", 1, {}, "units must be an integer from 1 to 10000, got 0"),
        ("head:layers=99", "ring8", 1, {}, "layers must be an integer from 1 to 12, got 99"),
        ("head", "ring8", 1, {"points": 3}, "points must be an integer"),
        ("jump", "ring8", 1, {"points": 3}, "points must be an integer >= 8, got 3"),
        ("jump", "ring8", 1, {"steps": 0}, "steps must be an integer >= 1, got 0"),
        ("jump", "ring8", 1, {"path": "rectified_flow:t_max=1"}, "training needs 0 < rho < infinity at both ends"),
        ("jump:units=3", "ring8", 1, {}, "jump does not take the option 'units'"),
    ],
)  # fmt: skip
def test_wrong_requests_are_named(method, target, nfe, options, words):
    with pytest.raises(ArgumentError, match=words):
        train(method, target, nfe, **options)


def test_training_repeats_from_its_seed():
    runs = [train_head("bimodal1d", 1, units=10, points=64, steps=2, seed=s).content.digest for s in (3, 3, 4)]
    assert runs[0] == runs[1] != runs[2]
    nets = [train_head("ring8", 2, kind="network", units=5, layers=1, points=64, steps=3, seed=3).content.digest for _ in "ab"]
    assert nets[0] == nets[1]
    nodes = [train_nodes("bimodal1d", 1, points=64, count=9).content.digest for _ in "ab"]
    assert nodes[0] == nodes[1]


def test_the_command_line_trains_them_and_shows_what_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    request = ["--target", "bimodal1d", "--nfe", "1", "--points", "64", "--seed", "1"]
    for method, steps in (("jump", ["--steps", "2"]), ("head:units=5", ["--steps", "2"]), ("nodes:count=9", [])):
        name = method.partition(":")[0]
        done = CliRunner().invoke(train_command.command, [method, *request, *steps, "--json"])
        assert done.exit_code == 0, done.output
        facts = json.loads(done.stdout)
        assert facts["solver"] == f"{name}:file={name}-bimodal1d-1.safetensors"
        assert facts["multiply-adds a row"] == {"jump": 2, "head": 17, "nodes": 4}[name]
        assert done.stderr.splitlines()
        shown = CliRunner().invoke(show_command.command, [facts["solver"], "--json"])
        told = json.loads(shown.stdout)
        assert (told["NFE"], told["dimension"], told["order"]) == (1, 1, None)
        assert told["trained on"] == "bimodal1d, path edm, noise levels 80 to 0.002"
        assert told["held-out error"] == facts["held-out error"]
        assert ("training error" in told) == (name != "nodes")
