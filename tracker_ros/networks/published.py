"""Published checkpoints: from their containers and tensor names to ours.

Each table maps a published prefix to ours, first match wins; ``None`` drops the tensor (parts of the published network
that nothing evaluates).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tracker_ros.errors import WeightsError
from tracker_ros.text import printable

NameTable = tuple[tuple[str, str | None], ...]
#: From what a checkpoint holds to a state dict with our names.
Converter = Callable[[Any], dict[str, Tensor]]

DIMP_NAMES: NameTable = (
    ("feature_extractor.layer4.", None),
    ("feature_extractor.fc.", None),
    ("feature_extractor.", "backbone."),
    ("classifier.filter_initializer.filter_conv.", "classifier.initializer.conv."),
    ("classifier.filter_optimizer.label_map_predictor.weight", "classifier.optimizer.label.coefficients"),
    ("classifier.filter_optimizer.target_mask_predictor.0.weight", "classifier.optimizer.mask.coefficients"),
    ("classifier.filter_optimizer.spatial_weight_predictor.weight", "classifier.optimizer.weight.coefficients"),
    ("classifier.filter_optimizer.", "classifier.optimizer."),
    ("classifier.feature_extractor.", "classifier.features."),
    ("bb_regressor.conv3_1r.", "iou_net.reference8."),
    ("bb_regressor.conv4_1r.", "iou_net.reference16."),
    ("bb_regressor.fc3_1r.", "iou_net.reference8_fc."),
    ("bb_regressor.fc34_3r.", "iou_net.modulation8."),
    ("bb_regressor.fc34_4r.", "iou_net.modulation16."),
    ("bb_regressor.conv3_1t.", "iou_net.test8.0."),
    ("bb_regressor.conv3_2t.", "iou_net.test8.1."),
    ("bb_regressor.conv4_1t.", "iou_net.test16.0."),
    ("bb_regressor.conv4_2t.", "iou_net.test16.1."),
    ("bb_regressor.fc3_rt.", "iou_net.fc8."),
    ("bb_regressor.fc4_rt.", "iou_net.fc16."),
    ("bb_regressor.iou_predictor.", "iou_net.predictor."),
)


def _depthwise(published: str, ours: str) -> NameTable:
    """A branch of a depth-wise head."""
    names = (("conv_kernel", "template"), ("conv_search", "search"), ("head.3", "output"), ("head", "hidden"))
    return tuple((f"{published}{theirs}.", f"{ours}{name}.") for theirs, name in names)


def _branches(published: str, ours: str) -> NameTable:
    return _depthwise(f"{published}cls.", f"{ours}cls.") + _depthwise(f"{published}loc.", f"{ours}loc.")


def _levels(table: Callable[[int, int], NameTable]) -> NameTable:
    """A table for every level: 2, 3, 4 in published names, 0, 1, 2 in ours."""
    return table(2, 0) + table(3, 1) + table(4, 2)


def _adjustment(published: int, ours: int) -> NameTable:
    """What CLNet adds to a level."""
    rows: list[tuple[str, str | None]] = []
    for branch in ("cls", "loc"):
        theirs, mine = f"rpn_head.rpn{published}.{branch}.", f"adjustments.{ours}.{branch}."
        rows += [
            (f"{theirs}last_weights0", f"heads.{ours}.{branch}.output.weight"),
            (f"{theirs}last_bias0", f"heads.{ours}.{branch}.output.bias"),
        ]
        for i, layer in enumerate(("conv1x1", "conv1x1_2", "conv1x1_3")):
            encoder = f"{theirs}encoder.encoder_mu.{layer}."
            rows += [
                (f"{encoder}0.", f"{mine}encoder.{3 * i}."),
                (f"{encoder}1.running_", None),  # never used: see FrameNorm
                (f"{encoder}1.", f"{mine}encoder.{3 * i + 1}."),
            ]
        for i, layer in enumerate(("deconv1", "deconv1_2", "deconv2")):
            rows.append((f"{theirs}decoder.decoder_mu.{layer}.0.", f"{mine}predictor.{2 * i}."))
    return tuple(rows)


def _relation(published: int, ours: int) -> NameTable:
    """SiamRN's relation detector of a level."""
    names = {
        "global_det{}.MLP.": "global_detector.mlp.",
        "global_det{}.fc.": "global_detector.output.",
        "local_det{}.conv.": "local_detector.conv.",
        "local_det{}.fc.": "local_detector.output.",
        "patch_det{}.conv_1.": "patch_detector.reduce.",
        "patch_det{}.conv_2.": "patch_detector.conv.",
        "patch_det{}.conv_3.": "patch_detector.expand.",
        "patch_det{}.fc.": "patch_detector.output.",
        "non_local{}.theta.": "non_local.theta.",
        "non_local{}.phi.0.": "non_local.phi.",
        "non_local{}.g.0.": "non_local.g.",
        "non_local{}.W.": "non_local.project.",
    }
    return tuple((f"multi_det.{k.format(published)}", f"relations.{ours}.{v}") for k, v in names.items())


_BACKBONE: NameTable = (("backbone.", "backbone."),)
_NECK = _levels(lambda theirs, ours: ((f"neck.downsample{theirs}.downsample.", f"neck.{ours}."),))

SIAMRPN_DW_NAMES: NameTable = _BACKBONE + _branches("rpn_head.", "heads.0.")
#: Both layouts in which up-channel weights exist: the common framework's, and that of the paper's authors.
SIAMRPN_UP_NAMES: NameTable = (
    *_BACKBONE,
    ("rpn_head.template_cls_conv.", "heads.0.cls.template."),
    ("rpn_head.template_loc_conv.", "heads.0.loc.template."),
    ("rpn_head.search_cls_conv.", "heads.0.cls.search."),
    ("rpn_head.search_loc_conv.", "heads.0.loc.search."),
    ("rpn_head.loc_adjust.", "heads.0.loc.adjust."),
    ("featureExtract.", "backbone.features."),
    ("conv_cls1.", "heads.0.cls.template."),
    ("conv_r1.", "heads.0.loc.template."),
    ("conv_cls2.", "heads.0.cls.search."),
    ("conv_r2.", "heads.0.loc.search."),
    ("regress_adjust.", "heads.0.loc.adjust."),
)
_RPN_FUSION: NameTable = (("rpn_head.cls_weight", "cls_fusion"), ("rpn_head.loc_weight", "loc_fusion"))
SIAMRPNPP_NAMES: NameTable = (
    _BACKBONE + _NECK + _RPN_FUSION + _levels(lambda i, j: _branches(f"rpn_head.rpn{i}.", f"heads.{j}."))
)
CLNET_NAMES: NameTable = _levels(_adjustment) + SIAMRPNPP_NAMES
SIAMBAN_NAMES: NameTable = (
    *_BACKBONE,
    *_NECK,
    ("head.cls_weight", "cls_fusion"),
    ("head.loc_weight", "loc_fusion"),
    ("head.loc_scale", "loc_scales"),
    *_levels(lambda i, j: _branches(f"head.box{i}.", f"heads.{j}.")),
)
SIAMRN_NAMES: NameTable = (
    *SIAMBAN_NAMES,
    ("multi_det.matching_weight", "relation_fusion"),
    *_levels(_relation),
)


def _rename(state: Mapping[str, Tensor], names: NameTable, owner: str) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for key, value in state.items():
        if key.endswith("num_batches_tracked"):
            continue
        for published, ours in names:
            if key.startswith(published):
                if ours is not None:
                    tensors[ours + key[len(published) :]] = value.float()
                break
        else:
            raise WeightsError(
                f"tensor '{printable(key[:100])}' is not one of {owner}'s: this is another network's checkpoint"
            )
    return tensors


#: Under what name training programs keep the state dict.
_STATES = ("net", "state_dict", "model_state_dict", "model")
#: What parallel training and compilation put before the names of what they wrap, whole networks and parts.
_WRAPPERS = re.compile(r"(^|\.)(?:(?:module|_orig_mod)\.)+")


def _state_dict(checkpoint: Any, owner: str) -> dict[str, Tensor]:
    """The state dict in a checkpoint, or the checkpoint itself where it is one; without the names of wrappers."""
    held = checkpoint if isinstance(checkpoint, dict) else {}
    for state in (*(held[key] for key in _STATES if key in held), held):
        if (
            isinstance(state, dict)
            and state
            and all(isinstance(k, str) and isinstance(state[k], Tensor) for k in state)
        ):
            found = {_WRAPPERS.sub(r"\1", key): value for key, value in state.items()}
            if len(found) < len(state):
                raise WeightsError("the state dict has tensors with and without the prefix 'module.' of one name")
            return found
    whole = "" if held else "; it may hold a whole network: save its state_dict() instead"
    raise WeightsError(
        f"no state dict was found under {', '.join(map(repr, _STATES))} nor at the top: this is not a {owner} "
        f"checkpoint{whole}"
    )


def convert_dimp(checkpoint: Any) -> dict[str, Tensor]:
    """Names of a published DiMP checkpoint (``{"net": state_dict, ...}`` or the state dict itself) to ours.

    Raises:
        WeightsError: there is no state dict, or a tensor that DiMP does not have.
    """
    tensors = _rename(_state_dict(checkpoint, "DiMP"), DIMP_NAMES, "DiMP")
    return {k: v.reshape(-1) if k.endswith("coefficients") else v for k, v in tensors.items()}


def convert_siamese(checkpoint: Any, names: NameTable, owner: str, levels: int = 1) -> dict[str, Tensor]:
    """Names of a published Siamese checkpoint (a state dict, or ``{"state_dict": ..., ...}`` of a snapshot) to ours.

    Args:
        checkpoint: what the file holds.
        names: table of the network.
        owner: its name, for people.
        levels: its number of levels. A checkpoint without fusion weights means their plain mean, which is what
            weights of zero give.

    Raises:
        WeightsError: there is no state dict, or a tensor that the network does not have.
    """
    tensors = _rename(_state_dict(checkpoint, owner), names, owner)
    if levels > 1:
        tensors = {"cls_fusion": torch.zeros(levels), "loc_fusion": torch.zeros(levels), **tensors}
    # The prediction network's layers are published as 1x1 convolutions.
    return {k: v.flatten(1) if ".predictor." in k else v for k, v in tensors.items()}


convert_siamrpn_dw = partial(convert_siamese, names=SIAMRPN_DW_NAMES, owner="SiamRPN (depth-wise)")
convert_siamrpn_up = partial(convert_siamese, names=SIAMRPN_UP_NAMES, owner="SiamRPN (up-channel)")
convert_siamrpnpp = partial(convert_siamese, names=SIAMRPNPP_NAMES, owner="SiamRPN++", levels=3)
convert_clnet = partial(convert_siamese, names=CLNET_NAMES, owner="CLNet", levels=3)
convert_siamban = partial(convert_siamese, names=SIAMBAN_NAMES, owner="SiamBAN", levels=3)
convert_siamrn = partial(convert_siamese, names=SIAMRN_NAMES, owner="SiamRN", levels=3)
