"""Published layouts of checkpoints map onto the networks key by key."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import golden
import pytest
import torch
from torch import Tensor, nn

from tracker_ros import checkpoints, weights
from tracker_ros.errors import WeightsError
from tracker_ros.networks.siamrpn import SiamRPNNet

#: The networks of these tests have shapes and no memory.
pytestmark = pytest.mark.filterwarnings("ignore:.*copying from a non-meta parameter:UserWarning")

CONVERTERS = {name: convert for name, (_, convert) in checkpoints.importers().items()}

SPECS = golden.SHARED / "reference" / "spec"


def _spec(name: str) -> dict[str, Any]:
    path = SPECS / f"{name}.json"
    if not path.is_file():
        pytest.skip(f"{path} is not there; set TRACKER_ROS_SHARED to the folder that has reference/spec")
    return json.loads(path.read_text())


def _state(shapes: dict[str, Any]) -> OrderedDict[str, Tensor]:
    """Tensors of the listed shapes, each with a value of its own."""
    r = torch.Generator().manual_seed(0)
    return OrderedDict(
        (key, torch.rand((), generator=r).expand(entry["shape"] if isinstance(entry, dict) else entry))
        for key, entry in shapes.items()
    )


def _network(name: str) -> nn.Module:
    with torch.device("meta"):  # shapes without memory
        return checkpoints.importers()[name][0]()


@pytest.mark.parametrize("name", ["dimp18", "dimp50", *(n for n in CONVERTERS if n.startswith(("siam", "clnet")))])
def test_the_published_layout_fits_the_network(name: str) -> None:
    if name == "siamrpn_big_up":
        shapes = _spec("siamrpn_alex_up")["dasiamrpn_net_keys"]["SiamRPNBIG"]
    else:
        shapes = _spec(name)["state_dict"]
    tensors = CONVERTERS[name](_state(shapes))
    weights.load_state(_network(name), tensors, name)  # strict: names and shapes


def test_the_layout_of_siamrpns_authors_fits_too() -> None:
    shapes = _spec("siamrpn_alex_up")["dasiamrpn_net_keys"]["SiamRPNVOT/OTB"]
    state = _state(shapes)
    tensors = CONVERTERS["siamrpn_alex_up"](state)
    weights.load_state(_network("siamrpn_alex_up"), tensors, "authors")
    # "r" regresses, "cls" classifies; 1 is the template's convolution, 2 the search crop's.
    for theirs, ours in (
        ("conv_r1.weight", "heads.0.loc.template.weight"),
        ("conv_cls2.bias", "heads.0.cls.search.bias"),
        ("regress_adjust.weight", "heads.0.loc.adjust.weight"),
    ):
        assert torch.equal(tensors[ours], state[theirs])


def _published(net: SiamRPNNet) -> OrderedDict[str, Tensor]:
    """Our depth-wise SiamRPN under published names."""
    names = {"template": "conv_kernel", "search": "conv_search", "hidden": "head", "output": "head.3"}
    state = OrderedDict()
    for key, value in net.state_dict().items():
        theirs = key
        if key.startswith("heads.0."):
            _, _, branch, part, rest = key.split(".", 4)
            theirs = f"rpn_head.{branch}.{names[part]}.{rest}"
        state[theirs] = value
    return state


def test_snapshots_of_parallel_training_import(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = checkpoints.importers()["siamrpn_alex_dw"][0]()
    state = _published(net)  # type: ignore[arg-type]
    snapshot = {"epoch": 20, "state_dict": {f"module.{k}": v for k, v in state.items()}, "optimizer": {"lr": 0.1}}
    path = tmp_path / "checkpoint_e20.pth"
    for content in (state, snapshot):
        torch.save(content, path)
        imported = checkpoints.import_checkpoint(path, "siamrpn_alex_dw").state_dict()
        assert all(torch.equal(v, imported[k]) for k, v in net.state_dict().items() if "num_batches" not in k)


def test_levels_without_fusion_weights_are_averaged() -> None:
    shapes = _spec("siamrpnpp_r50")["state_dict"]
    state = _state({k: v for k, v in shapes.items() if k not in ("rpn_head.cls_weight", "rpn_head.loc_weight")})
    tensors = CONVERTERS["siamrpnpp_r50"](state)
    weights.load_state(_network("siamrpnpp_r50"), tensors, "mean")
    assert tensors["cls_fusion"].softmax(0).tolist() == pytest.approx([1 / 3] * 3)


@pytest.mark.parametrize("content", [None, [], {}, {"state_dict": {}}, {"state_dict": {"a": 1}}, {1: torch.ones(1)}])
def test_what_is_not_a_state_dict_is_refused(content: Any) -> None:
    for convert in CONVERTERS.values():
        with pytest.raises(WeightsError, match="no state dict"):
            convert(content)
        with pytest.raises(WeightsError, match="not one of"):
            convert({"layer1.weight": torch.ones(1)})


def test_another_networks_checkpoint_is_refused() -> None:
    state = _state(_spec("siamban_r50")["state_dict"])
    with pytest.raises(WeightsError, match=r"'head\..*' is not one of SiamRPN\+\+'s"):
        CONVERTERS["siamrpnpp_r50"](state)
    with pytest.raises(WeightsError, match="tensors missing"):
        weights.load_state(_network("siamrn_r50"), CONVERTERS["siamrn_r50"](state), "siamban.pth")
