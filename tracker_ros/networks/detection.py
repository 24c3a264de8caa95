"""What guided detectors share (Huang et al., "Bridging the Gap Between Detection and Tracking", ICCV 2019).

A detector is a backbone with one or more feature maps ("levels"), a target guidance on each, and a head. Crops are
BGR in [0, 255]; boxes are (cx, cy, w, h) in crop pixels; class 0 is the background, 1 the target.

Crops (section 3.5): the search window is a square of `search_context` times the target's size, the geometric mean of
its sides, and is resized to `search` pixels; the exemplar's is `exemplar_context` times its size and centred on it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tracker_ros.geometry import detection as boxes_of
from tracker_ros.networks.backbones import BackboneConfig, build_backbone
from tracker_ros.networks.efficientnet import EfficientNet
from tracker_ros.networks.guidance import Cells, TargetGuidance
from tracker_ros.networks.resnet import ResNet
from tracker_ros.networks.vgg import VGG16, VGGConfig

ConfigT = TypeVar("ConfigT", bound="DetectorConfig")

#: Channels that a group norm treats together, at least.
_GROUP = 16


class Detections(NamedTuple):
    """What a head says of N candidates in each of B crops.

    Attributes:
        cls: BxNx2 logits (background, target).
        loc: BxNx4 regression; `GuidedDetector.decode` makes boxes of it.
    """

    cls: Tensor
    loc: Tensor

    @property
    def scores(self) -> Tensor:
        """Probability of being the target, BxN."""
        return self.cls.softmax(-1)[..., 1]


class Candidates(NamedTuple):
    """Where the target may be in each of B crops, and what the head reads of it.

    Attributes:
        inputs: arguments of the head, each with B as leading axis.
        boxes: BxNx4 (cx, cy, w, h): anchors or proposals.
        valid: BxN; the others only fill the tensor up.
        rpn: outputs of the first stage of a two-stage detector over its `rpn_boxes`.
    """

    inputs: tuple[Tensor, ...]
    boxes: Tensor
    valid: Tensor
    rpn: Detections | None = None


@dataclass(frozen=True)
class LevelConfig:
    """One feature map of a detector and its guidance.

    Attributes:
        stride: pixels a cell.
        exemplar: side of the exemplar that guides this level, in pixels (paper: twice the level's base size for SSD).
        channels: channels of the guided map; 0 for those of the backbone's (the paper's).
        bins: bins a side that the target is pooled to (the paper does not say).
        tower: 3x3 convolutions behind the merge (the paper has none).
    """

    stride: int
    exemplar: int
    channels: int = 0
    bins: int = 4
    tower: int = 0


@dataclass(frozen=True)
class DetectorConfig:
    """Shape of a guided detector.

    Attributes:
        backbone: its shape.
        frozen: the backbone is shared with other networks and never trained.
        search: side of the search crop in pixels.
        levels: the feature maps, finest first.
        search_context, exemplar_context: side of either window over the target's size (section 3.5).
    """

    backbone: BackboneConfig | VGGConfig
    frozen: bool
    search: int
    levels: tuple[LevelConfig, ...]
    search_context: float = 5.0
    exemplar_context: float = 2.0

    @property
    def exemplar(self) -> int:
        """Side of the exemplar crop in pixels: the largest of the levels' exemplars."""
        return max(level.exemplar for level in self.levels)


def with_one_exemplar(config: ConfigT, size: int) -> ConfigT:
    """The same detector, all levels guided by an exemplar of `size` pixels (table 1, "No Multi-Res.")."""
    return replace(config, levels=tuple(replace(level, exemplar=size) for level in config.levels))


class GuidedLevel(nn.Module):
    """Guidance of one feature map, with the norm and ReLU that give every head inputs of the same scale.

    Group norms keep no statistics of other crops, which adapting a head to one target would upset.
    """

    def __init__(self, channels: int, config: LevelConfig, cells: Cells) -> None:
        super().__init__()
        self.outputs = config.channels or channels
        self.cells = cells
        self.exemplar = config.exemplar
        self.guidance = TargetGuidance(channels, self.outputs, config.bins)
        tower: list[nn.Module] = [_norm(self.outputs), nn.ReLU(inplace=True)]
        for _ in range(config.tower):
            tower += convolution(self.outputs, self.outputs)
        self.tower = nn.Sequential(*tower)

    def forward(self, features: Tensor, modulator: Tensor) -> Tensor:
        """BxCxHxW and BxC to BxOxHxW."""
        return self.tower(self.guidance(features, modulator))


class GuidedDetector(nn.Module):
    """A detector of what an exemplar shows. Derived classes add the head and its candidates.

    Attributes:
        head: the layers that are adapted to a target; `head(*candidates.inputs)` gives `Detections`.
        log_rates: logarithms of the step lengths that they are adapted with, see `start_rates`.
        two_stage: there is a region proposal network: `rpn_boxes`, `match_rpn`.
    """

    head: nn.Module
    log_rates: nn.ParameterDict
    two_stage = False
    #: Weight of a positive over a negative in the classification loss of a two-stage detector's first stage.
    rpn_positive_weight = 1.0
    #: IoU from which a candidate is the target, and below which it is background; ignored in between.
    positive, negative = 0.5, 0.4

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone: ResNet | EfficientNet | VGG16
        if isinstance(config.backbone, VGGConfig):
            self.backbone = VGG16(config.backbone)
            sources = {s: (c, Cells(s, s / 2)) for s, c in zip((8, 16), self.backbone.channels, strict=True)}
        else:
            # Every strided layer of these is padded so that its first cell stays on the first pixel.
            self.backbone = build_backbone(config.backbone)
            sources = {s: (c, Cells(s, 0.5)) for s, c in zip((8, 16), config.backbone.maps, strict=True)}
        self.extra: nn.Module | None = None
        if any(level.stride == 32 for level in config.levels):
            self.extra, channels = self._extra_level(sources[16][0])
            sources[32] = channels, Cells(32, sources[16][1].offset)
        self.levels = nn.ModuleList(
            GuidedLevel(sources[level.stride][0], level, sources[level.stride][1]) for level in config.levels
        )
        if config.frozen:
            self.backbone.requires_grad_(False)
            self.backbone.eval()

    def _extra_level(self, channels: int) -> tuple[nn.Module, int]:
        """Layers from the map at stride 16 to one at stride 32 (3x3, stride 2, padded), and its channels."""
        return nn.Sequential(*convolution(channels, channels // 2, stride=2)), channels // 2

    @property
    def guided_levels(self) -> list[GuidedLevel]:
        """The levels, finest first."""
        return [level for level in self.levels if isinstance(level, GuidedLevel)]

    def train(self, mode: bool = True) -> GuidedDetector:
        """As `nn.Module.train`; batch norms keep the statistics that they were pretrained with, as in all detectors."""
        super().train(mode)
        if self.config.frozen:
            self.backbone.eval()
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def outer_parameters(self) -> list[nn.Parameter]:
        """All that is trained, the head included."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def start_rates(self, cls: float, loc: float) -> None:
        """Begin with these step lengths of the inner loop for the head's `cls` and `loc` layers; they are learned.

        The paper fixes one rate for everything (section 4.1: 0.05). A step that long overshoots where a layer reads
        many features, and the more so for boxes; so each parameter has a rate, as in MAML++ (its reference 1).
        """
        rates = {name: cls if name.startswith("cls") else loc for name, _ in self.head.named_parameters()}
        self.log_rates = nn.ParameterDict(
            {name.replace(".", "-"): nn.Parameter(torch.tensor(rate).log()) for name, rate in rates.items()}
        )

    def inner_rates(self, factor: float = 1.0) -> dict[str, Tensor]:
        """Step length of each of the head's parameters, times `factor`."""
        return {name.replace("-", "."): factor * value.exp() for name, value in self.log_rates.items()}

    def convolutions(self) -> list[nn.Module]:
        """The parts that run on every frame's whole crop, for which half precision suffices."""
        return [self.backbone]

    def backbone_maps(self, crops: Tensor) -> tuple[Tensor, ...]:
        """Backbone maps of crops Bx3xSxS (BGR in [0, 255], any real type) at strides 8 and 16: BxCxHxW.

        No gradient flows through them where the backbone is frozen, so they can be kept.
        """
        image = self.backbone.preprocess(crops.flip(1)).to(next(self.backbone.parameters()).dtype)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.frozen):
            return tuple(level.to(self.guided_levels[0].guidance.merge.weight.dtype) for level in self.backbone(image))

    def level_maps(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The maps of all levels, made of `backbone_maps`: one BxCxHxW a level."""
        return [self._level_map(i, maps[self._source(i)]) for i in range(len(self.levels))]

    def features(self, crops: Tensor) -> list[Tensor]:
        """`level_maps` of crops Bx3xSxS (BGR in [0, 255], any real type)."""
        return self.level_maps(self.backbone_maps(crops))

    def _source(self, level: int) -> int:
        """Which of the backbone's maps a level is made of."""
        return 0 if self.config.levels[level].stride == 8 else 1

    def _level_map(self, level: int, source: Tensor) -> Tensor:
        if self.config.levels[level].stride < 32:
            return source
        assert self.extra is not None
        return self.extra(source)

    def exemplar_maps(self, exemplars: Tensor) -> tuple[Tensor, ...]:
        """The backbone's map that each level is guided by, one TxCxHxW a level.

        Args:
            exemplars: Tx3xExE crops (BGR in [0, 255]), E = ``config.exemplar``; smaller resolutions are made of it.
        """
        exemplars = exemplars.float()
        made: dict[int, tuple[Tensor, ...]] = {}
        for level in self.guided_levels:
            size = level.exemplar
            if size not in made:
                resized = exemplars
                if size != exemplars.shape[-1]:
                    resized = F.interpolate(exemplars, size=(size, size), mode="bilinear", antialias=True)
                made[size] = self.backbone_maps(resized)
        return tuple(made[level.exemplar][self._source(i)] for i, level in enumerate(self.guided_levels))

    def modulators(self, maps: Sequence[Tensor], boxes: Tensor) -> Tensor:
        """Guidance TxD of `exemplar_maps` and boxes Tx4 (cx, cy, w, h) in exemplars of `config.exemplar` pixels."""
        parts = []
        for i, (level, source) in enumerate(zip(self.guided_levels, maps, strict=True)):
            scaled = boxes * (level.exemplar / self.config.exemplar)
            parts.append(level.guidance.embed(self._level_map(i, source), scaled, level.cells))
        return torch.cat(parts, 1)

    def embed(self, exemplars: Tensor, boxes: Tensor) -> Tensor:
        """Guidance of targets, computed once a track.

        Args:
            exemplars: Tx3xExE crops (BGR in [0, 255]), E = ``config.exemplar``.
            boxes: Tx4 (cx, cy, w, h) of the targets in these crops.

        Returns:
            TxD: the modulators of all levels.
        """
        return self.modulators(self.exemplar_maps(exemplars), boxes)

    def guided(self, features: Sequence[Tensor], guidance: Tensor) -> list[Tensor]:
        """Guided maps, one BxOxHxW a level, of `features` of B crops and the guidance of each one's target, BxD."""
        levels = self.guided_levels
        modulators = guidance.split([level.guidance.channels for level in levels], 1)
        return [level(x, modulator) for level, x, modulator in zip(levels, features, modulators, strict=True)]

    def candidates(self, maps: Sequence[Tensor], extra: Tensor | None = None) -> Candidates:
        """Candidates of guided maps.

        Args:
            maps: one BxOxHxW a level.
            extra: BxMx4 boxes that are added to a two-stage detector's proposals, for training.
        """
        raise NotImplementedError

    def decode(self, loc: Tensor, boxes: Tensor) -> Tensor:
        """Boxes ...xNx4 of the head's regression ...xNx4 and the candidates' boxes ...xNx4."""
        return boxes_of.decode(loc, boxes)

    def encode(self, targets: Tensor, boxes: Tensor) -> Tensor:
        """The regression that leads from candidates' boxes ...xNx4 to targets of a shape that broadcasts."""
        return boxes_of.encode(targets, boxes)

    def match(self, boxes: Tensor, targets: Tensor) -> Tensor:
        """Labels of candidates' boxes BxNx4 for targets Bx4: BxN, 1 target, 0 background, -1 neither."""
        return boxes_of.label(_overlaps(boxes, targets), self.positive, self.negative)

    def rpn_boxes(self, device: torch.device | None = None) -> Tensor:
        """Nx4 anchors of a two-stage detector's first stage."""
        raise NotImplementedError

    def match_rpn(self, targets: Tensor) -> Tensor:
        """Labels of the first stage's anchors for targets Bx4: BxN as in `match`."""
        raise NotImplementedError


def cell_count(size: int, stride: int) -> int:
    """Cells a side of a map of a crop of `size` pixels: every backbone here rounds up."""
    return -(-size // stride)


def convolution(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
    """A padded 3x3 convolution, group norm and ReLU."""
    layer = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return [layer, _norm(outputs), nn.ReLU(inplace=True)]


def start_small(layers: Iterable[nn.Module]) -> None:
    """Initialise predictors as detectors do: weights of deviation 0.01, no bias."""
    for layer in layers:
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        nn.init.normal_(layer.weight, std=0.01)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def flat_predictions(maps: Tensor, values: int) -> Tensor:
    """Outputs of a predictor Bx(A*values)xHxW to Bx(HWA)xvalues, in the order of `geometry.detection.grid`."""
    return maps.permute(0, 2, 3, 1).reshape(len(maps), -1, values)


def _norm(channels: int) -> nn.GroupNorm:
    groups = next(g for g in range(max(channels // _GROUP, 1), 0, -1) if channels % g == 0)
    return nn.GroupNorm(groups, channels)


def _overlaps(boxes: Tensor, targets: Tensor) -> Tensor:
    return boxes_of.overlap_matrix(boxes, targets[:, None])[..., 0]
