"""PSNR and SSIM against their formulas, written out for one window at a time."""

import math

import pytest
import torch
from conftest import seeded

from sdlearn.images import psnr, ssim


def test_psnr_counts_decibels():
    grey = torch.full((2, 3, 4, 5), 0.5)
    assert psnr(grey, grey + 0.1) == pytest.approx(20, abs=1e-4)
    assert psnr(grey, grey + 0.01) == pytest.approx(40, abs=1e-4)
    assert psnr(grey.half(), grey.half()) == math.inf


def ssim_by_hand(a, b):
    """Wang and others (2004), equations 13 to 16, one channel at a time, one window at a time."""
    kernel = [math.exp(-((i - 5) ** 2 + (j - 5) ** 2) / 4.5) for i in range(11) for j in range(11)]
    weights = torch.tensor(kernel, dtype=torch.double) / sum(kernel)
    values = []
    for one, two in zip(a.flatten(0, 1), b.flatten(0, 1), strict=True):
        for i in range(one.shape[0] - 10):
            for j in range(one.shape[1] - 10):
                x, y = (c[i : i + 11, j : j + 11].flatten().double() for c in (one, two))
                mx, my = (weights * x).sum(), (weights * y).sum()
                vx, vy = (weights * (x - mx) ** 2).sum(), (weights * (y - my) ** 2).sum()
                cov = (weights * (x - mx) * (y - my)).sum()
                top = (2 * mx * my + 1e-4) * (2 * cov + 9e-4)
                values.append(top / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4)))
    return torch.stack(values).mean().item()


def test_ssim_is_the_papers_formula():
    a, noise = torch.rand(2, 2, 3, 12, 13, generator=seeded())
    b = 0.7 * a + 0.3 * noise
    assert ssim(a, b) == pytest.approx(ssim_by_hand(a, b), abs=1e-9)
    assert 0.1 < ssim(a, b) < 0.95  # A case in which the formula has something to say.
    assert ssim(a, a) == pytest.approx(1)
    assert ssim(a, 1 - a) < -0.5


def test_ssim_of_flat_pictures_is_their_brightness_alone():
    dark, light = torch.full((1, 3, 11, 11), 0.2), torch.full((1, 3, 11, 11), 0.6)
    assert ssim(dark, light) == pytest.approx((2 * 0.12 + 1e-4) / (0.04 + 0.36 + 1e-4), abs=1e-6)


@pytest.mark.parametrize("measure", [psnr, ssim])
def test_other_shapes_are_refused(measure):
    with pytest.raises(ValueError, match=r"\(1, 3, 16, 16\) and \(1, 3, 16, 17\)"):
        measure(torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 17))
    with pytest.raises(ValueError, match="alike"):
        measure(torch.zeros(3, 16, 16), torch.zeros(3, 16, 16))


def test_ssim_needs_room_for_its_window():
    with pytest.raises(ValueError, match="smaller than 11"):
        ssim(torch.zeros(1, 3, 10, 64), torch.zeros(1, 3, 10, 64))
