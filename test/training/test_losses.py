"""Losses and label maps against cases worked out by hand."""

import math

import pytest
import torch

from tracker_ros.training.distill import regression_loss, relation, relation_loss, standardise
from tracker_ros.training.losses import (
    LABEL_SIGMA,
    average_precision,
    classification_loss,
    gaussian_labels,
    hinge_residual,
    iou_loss,
)


def test_label_sigma_is_a_quarter_of_the_base_target() -> None:
    assert pytest.approx(288 / 5 / 16 / 4) == LABEL_SIGMA


def test_label_map_peaks_at_the_centre_and_falls_as_a_gaussian() -> None:
    labels = gaussian_labels(torch.tensor([[7.0, 3.0], [9.5, 9.0]]), 19, sigma=0.9)
    assert labels.shape == (2, 19, 19)
    assert labels[0, 3, 7] == 1.0  # row y, column x
    assert labels[0, 3, 8] == pytest.approx(math.exp(-0.5 / 0.81))
    assert labels[0, 4, 8] == pytest.approx(math.exp(-1.0 / 0.81))
    assert labels[1, 9, 9] == labels[1, 9, 10]  # a centre between two cells
    assert labels[1, 9, 9] == pytest.approx(math.exp(-0.125 / 0.81))


def test_label_map_of_an_absent_target_is_zero() -> None:
    assert gaussian_labels(torch.full((1, 2), torch.nan), 19).abs().sum() == 0


def test_hinge_residual_squares_at_the_target_and_clips_in_the_background() -> None:
    scores = torch.tensor([0.7, 1.2, -3.0, 0.4])
    labels = torch.tensor([1.0, 0.06, 0.0, 0.05])
    torch.testing.assert_close(hinge_residual(scores, labels), torch.tensor([-0.3, 1.14, 0.0, 0.4]))


def test_classification_loss_averages_over_iterates_and_cells() -> None:
    labels = torch.tensor([[1.0, 0.0]])
    first, second = torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, -5.0]])
    # First iterate: (1 + 1) / 2; second: nothing to correct.
    assert classification_loss([first, second], labels) == pytest.approx(0.5)


def test_iou_loss_leaves_out_absent_targets() -> None:
    predicted = torch.tensor([[0.5, 1.0], [9.0, 9.0]])
    overlaps = torch.tensor([[0.5, 1.0], [0.0, 0.0]])
    # Targets are 0 and 1: errors 0.5 and 0; the second image does not count.
    assert iou_loss(predicted, overlaps, torch.tensor([True, False])) == pytest.approx(0.125)
    assert iou_loss(predicted, overlaps, torch.tensor([False, False])) == 0


def test_regression_loss_is_smooth_l1_plus_cosine_distance() -> None:
    target = torch.zeros(1, 2, 1, 1)
    target[0, 0] = 2.0
    prediction = torch.zeros(1, 2, 1, 1)
    prediction[0, 1] = 0.5
    # Smooth L1: (2 - 0.5) and 0.5 * 0.25, mean of both; the directions are orthogonal.
    assert regression_loss(prediction, target) == pytest.approx((1.5 + 0.125) / 2 + 1)
    assert regression_loss(target, target) == pytest.approx(0, abs=1e-6)


def test_relation_compares_cells_of_neighbouring_crops() -> None:
    features = torch.randn(4, 8, 3, 3, generator=torch.Generator().manual_seed(0))
    similarities = relation(features)
    assert similarities.shape == (2, 9, 9)
    centred = features - features.mean(dim=(0, 2, 3), keepdim=True)
    a, b = centred[2, :, 1, 2], centred[3, :, 0, 1]
    assert similarities[1, 5, 1] == pytest.approx(float(a @ b / (a.norm() * b.norm())), abs=1e-5)
    assert relation_loss(features, features) == 0
    assert relation_loss(features * 7, features) == pytest.approx(0, abs=1e-9)  # only directions count


def test_standardise_clips_outliers() -> None:
    statistics = [(torch.full((1, 1, 1, 1), 3.0), torch.full((1, 1, 1, 1), 2.0))]
    result = standardise([torch.tensor([5.0, 100.0]).reshape(1, 1, 1, 2)], statistics)
    assert result[0].flatten().tolist() == [1.0, 6.0]


def test_average_precision_of_hand_made_rankings() -> None:
    scores = torch.tensor([[0.9, 0.8, 0.7, 0.6, 0.5]]).expand(4, -1)
    labels = torch.tensor([[1, 0, 1, -1, 0], [-1, 1, 1, 0, 0], [0, 1, -1, 0, 1], [0, -1, 0, 0, 0]])
    expected = torch.tensor([(1 + 2 / 3) / 2, 1.0, (1 / 2 + 2 / 4) / 2, torch.nan], dtype=torch.float64)
    torch.testing.assert_close(average_precision(scores, labels), expected, equal_nan=True)
