"""EfficientNet-Lite0: its shape, where its cells look, ImageNet's weights, and batch norms folded away."""

import copy

import pytest
import torch
from torch import Tensor

from tracker_ros.networks.efficientnet import EFFICIENTNET_LITE0, EfficientNet
from tracker_ros.networks.inference import prepare
from tracker_ros.training.imagenet import convert_lite, lite0_file, read_lite0


def lite0(seed: int = 0) -> EfficientNet:
    """With random weights and batch norms that are not the identity."""
    torch.manual_seed(seed)
    net = EfficientNet(EFFICIENTNET_LITE0)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean = 0.1 * torch.randn(module.num_features)
            module.running_var = 0.5 + torch.rand(module.num_features)
            if module.affine:
                torch.nn.init.uniform_(module.weight, 0.5, 1.5)
                torch.nn.init.normal_(module.bias, std=0.1)
    return net.eval()


def published(net: EfficientNet) -> dict[str, Tensor]:
    """The state of `net` under the published keys, with blocks and a classifier that `net` does not have."""
    state = {}
    counted = [(s, b) for s, stage in enumerate(net.stages) for b in range(len(stage))]
    for key, value in net.state_dict().items():
        top, *rest = key.split(".")
        if top == "stem":
            state[f"{('_conv_stem', '_bn0')[int(rest[0])]}.{rest[1]}"] = value
        elif top == "stages":
            stage, block, part, number, name = rest
            conv, norm = {
                "expand": "_expand_conv _bn0",
                "depthwise": "_depthwise_conv _bn1",
                "project": "_project_conv _bn2",
            }[part].split()
            place = counted.index((int(stage), int(block)))
            state[f"_blocks.{place}.{(conv, norm)[int(number)]}.{name}"] = value
    return state | {
        "_blocks.11._expand_conv.weight": torch.zeros(672, 112, 1, 1),
        "_fc.weight": torch.zeros(1000, 1280),
    }


@torch.no_grad()
@pytest.mark.parametrize("size", [(64, 96), (72, 71)])
def test_maps_of_stride_8_and_16(size: tuple[int, int]) -> None:
    net = lite0()
    image = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)
    eight, sixteen = net(net.preprocess(image))
    cells = [tuple(-(-side // stride) for side in size) for stride in (8, 16)]
    assert [m.shape for m in (eight, sixteen)] == [(2, c, *n) for c, n in zip(net.config.maps, cells, strict=True)]
    assert net.config.maps == (40, 112)
    assert sum(p.numel() for p in net.parameters()) == 700_768


@torch.no_grad()
def test_cells_are_centred_where_those_of_a_resnet_are() -> None:
    """Cell (i, j) looks at pixel (stride * i, stride * j): what changes there moves the map alike on both sides."""
    net = lite0()
    image = torch.zeros(1, 3, 193, 193)
    image[..., 96, 96] = 1.0
    for cells, stride in zip(net(image), (8, 16), strict=True):
        changed = (cells - net(torch.zeros_like(image))[0 if stride == 8 else 1]).abs().sum(1)[0]
        rows = changed.sum(1).nonzero().flatten()
        assert rows[0] + rows[-1] == 2 * 96 // stride


@torch.no_grad()
def test_channels_are_standardised_while_training() -> None:
    net = EfficientNet(EFFICIENTNET_LITE0).train()
    for cells in net(net.preprocess(torch.rand(4, 3, 96, 96) * 255)):
        values = cells.transpose(0, 1).flatten(1)
        torch.testing.assert_close(values.mean(1), torch.zeros(len(values)), atol=1e-4, rtol=0)
        torch.testing.assert_close(values.std(1), torch.ones(len(values)), atol=0.02, rtol=0)
        assert cells.min() < -1  # signed: nothing is cut off


@torch.no_grad()
def test_folding_batch_norms_keeps_the_maps() -> None:
    net = lite0()
    image = net.preprocess(torch.rand(1, 3, 96, 96) * 255)
    folded = prepare(copy.deepcopy(net), torch.device("cpu"))
    left = [m for m in folded.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert len(left) == 2
    for ours, theirs in zip(folded(image), net(image), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_published_weights_keep_their_place() -> None:
    source, net = lite0(1), lite0(2)
    net.load_state_dict(convert_lite(published(source), net))
    for key, value in net.state_dict().items():
        own = key.startswith("standard") or key.endswith("num_batches_tracked")
        assert own or torch.equal(value, source.state_dict()[key]), key


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("_blocks.9._project_conv.weight", torch.zeros(192, 672, 1, 1)),
        ("_bn0.bias", torch.zeros(())),
        ("_blocks.0._bn1.running_var", None),
    ],
)
def test_weights_of_another_network_are_refused(key: str, value: Tensor | None) -> None:
    net = lite0()
    state = published(net)
    state.pop(key)
    if value is not None:
        state[key] = value
    with pytest.raises(ValueError, match="missing or of another shape"):
        convert_lite(state, net)


@torch.no_grad()
def test_imagenet_weights_of_the_package() -> None:
    try:
        file = lite0_file()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    net = lite0()
    net.load_state_dict(convert_lite(read_lite0(file), net))
    folded = prepare(copy.deepcopy(net), torch.device("cpu"))
    image = net.preprocess(torch.nn.functional.interpolate(torch.rand(1, 3, 12, 12) * 255, size=192, mode="bicubic"))
    for ours, theirs in zip(folded(image), net(image), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)
    # Features of photographs are a few deviations wide, which those of random or misplaced weights are not.
    widths = [m.std(dim=(0, 2, 3)).mean() for m in net.eval()(image)]
    assert all(1 < width < 12 for width in widths)
