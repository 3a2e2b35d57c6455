"""Figures of studies: what they draw."""

import torch

from diffode.studies import figures


def test_samples_of_an_image_target_are_drawn_beside_the_exact_ones():
    figure = figures.draw_images("patches-gmm", "edm", ["ddim", "dpmpp:order=2"], 6)
    exact, euler, second = (torch.tensor(panel.images[0].get_array().filled(0.0)) for panel in figure.axes)
    # The same starts: a better solver's pictures are nearer to the exact ones.
    assert float((second - exact).norm()) < float((euler - exact).norm())
    assert figure.axes[1].get_ylabel().startswith("ddim\nNFE 6")
