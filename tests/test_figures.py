"""Figures of studies: what they draw."""

import torch

from diffode.studies import figures


def test_samples_of_an_image_target_are_drawn_beside_the_exact_ones():
    figure = figures.draw_images("patches-gmm", "edm", ["ddim", "dpmpp:order=2"], [6, 12])
    shown = [torch.tensor(panel.images[0].get_array().filled(0.0)) for panel in figure.axes]
    (exact, again), (euler, finer), (second, _) = shown[:2], shown[2:4], shown[4:]
    assert torch.equal(exact, again)
    # The same starts: the pictures of a better solver, or of a larger budget, are nearer to the exact ones.
    assert float((second - exact).norm()) < float((euler - exact).norm())
    assert float((finer - exact).norm()) < float((euler - exact).norm())
    assert [figure.axes[0].get_title(), figure.axes[1].get_title()] == ["NFE 6", "NFE 12"]
    assert figure.axes[2].get_ylabel() == "ddim"


def test_a_budget_without_a_run_leaves_its_place_empty():
    figure = figures.draw_images("patches-gmm", "edm", ["universal"], [2, 4])
    assert [bool(panel.images) for panel in figure.axes] == [True, True, False, True]


def test_a_networks_pictures_have_the_shape_of_its_data_and_other_fields_have_none():
    assert figures.shape_of_images("trained:fashion-unet,statistics=scale") == (28, 28)
    assert figures.shape_of_images("trained:ring8") is None
    assert figures.shape_of_images("somewhere:field,dim=784") is None
