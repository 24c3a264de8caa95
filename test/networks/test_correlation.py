from __future__ import annotations

import numpy as np
import torch

from tracker_ros.networks.correlation import DepthwiseBranch, UpChannelBranch, correlate_depthwise, correlate_up_channel


def _naive(search: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """CxHxW with CxKxK, one channel at a time: CxH'xW'."""
    c, h, w = search.shape
    k = kernel.shape[-1]
    out = np.zeros((c, h - k + 1, w - k + 1))
    for channel in range(c):
        for y in range(h - k + 1):
            for x in range(w - k + 1):
                out[channel, y, x] = (search[channel, y : y + k, x : x + k] * kernel[channel]).sum()
    return out


def test_depthwise_correlation_is_the_sum_over_a_window_of_each_channel() -> None:
    torch.manual_seed(0)
    search, kernels = torch.randn(2, 3, 6, 7).double(), torch.randn(2, 3, 4, 4).double()
    found = correlate_depthwise(search, kernels)
    assert found.shape == (2, 3, 3, 4)
    for b in range(2):
        np.testing.assert_allclose(found[b], _naive(search[b].numpy(), kernels[b].numpy()), atol=1e-12)


def test_up_channel_correlation_sums_over_all_channels_of_each_output() -> None:
    torch.manual_seed(0)
    search, kernels = torch.randn(2, 3, 6, 7).double(), torch.randn(2, 5 * 3, 4, 4).double()
    found = correlate_up_channel(search, kernels)
    assert found.shape == (2, 5, 3, 4)
    for b in range(2):
        for output in range(5):
            kernel = kernels[b, 3 * output : 3 * output + 3].numpy()
            np.testing.assert_allclose(found[b, output], _naive(search[b].numpy(), kernel).sum(0), atol=1e-12)


def test_channels_last_maps_correlate_alike() -> None:
    torch.manual_seed(0)
    search, kernels = torch.randn(2, 4, 9, 9), torch.randn(2, 4, 3, 3)
    last = search.to(memory_format=torch.channels_last)
    torch.testing.assert_close(correlate_depthwise(last, kernels), correlate_depthwise(search, kernels))
    up = torch.randn(2, 8, 3, 3)
    torch.testing.assert_close(correlate_up_channel(last, up), correlate_up_channel(search, up))


def test_a_batch_of_targets_is_the_targets_one_by_one() -> None:
    torch.manual_seed(0)
    for branch in (UpChannelBranch(4, 3, adjust=True), DepthwiseBranch(4, 3, 6)):
        branch.eval()
        with torch.no_grad():
            kernels = branch.kernel(torch.randn(2, 4, 6, 6))
            search = torch.randn(2, 4, 12, 12)
            both = branch(search, kernels)
            assert both.shape == (2, 3, 7, 7)
            single = [branch(search[i : i + 1], kernels[i : i + 1]) for i in range(2)]
        torch.testing.assert_close(both, torch.cat(single))
