"""The recipe of SiamRN: samples, pairs, mining, losses, and training on tiny data."""

import copy
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from tracker_ros import weights
from tracker_ros.networks.backbones import SharedBackboneConfig
from tracker_ros.networks.resnet import ResNetConfig
from tracker_ros.networks.siamban import SIAMBAN18, SiamBANConfig, SiamBANNet
from tracker_ros.networks.siamrn import SiamRNConfig, SiamRNNet
from tracker_ros.training.data import ImagePool, TrainingImage, image_groups, pyramid
from tracker_ros.training.pairs import PairOptions, PairSampler
from tracker_ros.training.siamrn import (
    ObjectIndex,
    Pairs,
    SiamRNOptions,
    SiamRNTraining,
    clipped,
    draw_samples,
    form_pairs,
    list_objects,
    matching_loss,
    refine,
    start,
)

OPTIONS = SiamRNOptions(
    steps=4,
    bf16=False,
    searches=2,
    frames=1,
    scenes=3,
    objects=12,
    neighbours=2,
    validation=2,
    log_every=1,
    online_from=0.5,
    offline_from=0.5,
)


def _image(seed: int, boxes: list[list[float]], name: str = "", source: str = "test") -> TrainingImage:
    rng = np.random.default_rng(seed)
    picture = cv2.resize(rng.integers(0, 255, (12, 16, 3), np.uint8), (320, 240), interpolation=cv2.INTER_CUBIC)
    return TrainingImage(pyramid(picture), np.array(boxes, np.float32), source, name or str(seed))


@pytest.fixture(scope="module")
def pool() -> ImagePool:
    return ImagePool([_image(seed, [[120, 90, 40, 40], [40, 60, 50, 30]]) for seed in range(9)])


@pytest.fixture(scope="module")
def network() -> SiamRNNet:
    torch.manual_seed(5)
    shared = SharedBackboneConfig(ResNetConfig((1, 1, 1), False))
    net = SiamRNNet(SiamRNConfig(SiamBANConfig(shared, neck=8, hidden=8)))
    with torch.no_grad():
        for head in net.levels:
            head.loc.output.weight.mul_(0.05)
            assert head.loc.output.bias is not None
            head.loc.output.bias.fill_(3.4)  # boxes of about 60 pixels
    return net


def _training(network: SiamRNNet, pool: ImagePool, out: Path, **changes: object) -> SiamRNTraining:
    return SiamRNTraining(copy.deepcopy(network), pool, pool, out, replace(OPTIONS, **changes))  # type: ignore[arg-type]


# --- samples and pairs -----------------------------------------------------------------------------------------------


def _case(crops: int = 5) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Labels, overlaps and scores of 625 points: 30 on the target (20 of these with good boxes), 500 off it."""
    rng = np.random.default_rng(0)
    labels = torch.full((crops, 625), -1)
    labels[:, :30], labels[:, 125:] = 1, 0
    overlaps = torch.zeros(crops, 625)
    overlaps[:, :20], overlaps[:, 20:125], overlaps[:, 125:165] = 0.8, 0.3, 0.25
    return labels, overlaps, torch.from_numpy(rng.random((crops, 625), np.float32))


def test_pairs_are_formed_in_the_ratio_of_one_to_two_to_one() -> None:
    labels, overlaps, scores = _case()
    overlaps[:, :30] = 0.8
    samples = draw_samples(labels, overlaps, scores, OPTIONS, np.random.default_rng(1), mining=True)
    pairs = form_pairs(samples, overlaps, OPTIONS)
    assert ((pairs.own == 1).sum(1) == 16).all()
    assert ((pairs.own == 0).sum(1) == 32).all()
    assert (pairs.valid.sum(1) == 16).all()
    # Of the pairs with another object's template, half are positive and half negative proposals of the target.
    assert (samples.labels.gather(1, pairs.other).sum(1) == 8).all()
    assert all(len(set(row.tolist())) == 16 for row in pairs.other)
    # A point on the target whose box is elsewhere is no positive pair.
    overlaps[:, 20:30] = 0.3
    pairs = form_pairs(samples, overlaps, OPTIONS)
    good = overlaps.gather(1, samples.chosen) >= OPTIONS.same
    assert ((pairs.own == 1) == (good & (samples.labels == 1))).all()


def test_without_the_target_all_pairs_are_negative() -> None:
    labels, overlaps, scores = torch.zeros(2, 625, dtype=torch.long), torch.zeros(2, 625), torch.rand(2, 625)
    samples = draw_samples(labels, overlaps, scores, OPTIONS, np.random.default_rng(1), mining=True)
    pairs = form_pairs(samples, overlaps, OPTIONS)
    assert (samples.labels[:, :16] == -1).all()
    assert (samples.labels[:, 16:] == 0).all()
    assert ((pairs.own == 0).sum(1) == 32).all()
    assert pairs.valid.all()
    assert all(len(set(row.tolist())) == 16 for row in pairs.other)


def test_online_mining_takes_the_negatives_with_the_highest_scores() -> None:
    labels, overlaps, scores = _case()
    for mining in (False, True):
        samples = draw_samples(labels, overlaps, scores, OPTIONS, np.random.default_rng(1), mining)
        assert (labels.gather(1, samples.chosen) == samples.labels).all()
        negative = samples.chosen[:, OPTIONS.positives :]
        assert all(len(set(row.tolist())) == OPTIONS.negatives for row in negative)
        assert (negative >= 165).all()  # those that overlap the target are left out
        hardest = scores[:, 165:].topk(OPTIONS.mined, 1).indices + 165
        same = (negative[:, : OPTIONS.mined].sort(1).values == hardest.sort(1).values).all()
        assert bool(same) == mining


def test_the_matching_loss_weighs_the_kinds_of_pairs_and_not_their_numbers() -> None:
    own = torch.tensor([[0.5, 0.9, 0.1, 0.3, 0.7]])
    pairs = Pairs(torch.tensor([[1, -1, 0, 0, -1]]), torch.tensor([[0, 2]]), torch.tensor([[True, False]]))
    other = torch.tensor([[0.4, 0.8]])
    same, apart, stranger = 0.25, (0.01 + 0.09) / 2, 0.16
    assert float(matching_loss(own, other, pairs)) == pytest.approx((same + 2 * apart + stranger) / 4)
    assert float(matching_loss(own, other, pairs, contrastive=False)) == pytest.approx((same + 2 * apart) / 3)
    perfect = torch.tensor([[1.0, 0.3, 0.0, 0.0, 0.6]])
    assert float(matching_loss(perfect, torch.tensor([[0.0, 1.0]]), pairs)) == 0


def test_proposals_are_cut_at_the_border_of_the_crop() -> None:
    boxes = clipped(torch.tensor([[[0.0, 0.0, 20.0, 10.0], [120.0, 0.0, 40.0, 10.0], [300.0, 0.0, 40.0, 10.0]]]))
    expected = [[117.5, 122.5, 20.0, 10.0], [227.5, 122.5, 27.5, 10.0], [255.0, 122.5, 0.0, 10.0]]
    torch.testing.assert_close(boxes[0], torch.tensor(expected))


# --- offline mining --------------------------------------------------------------------------------------------------


def test_the_index_finds_the_true_nearest_neighbours_of_other_groups() -> None:
    rng = np.random.default_rng(2)
    vectors = rng.normal(size=(40, 6)).astype(np.float32) + 5
    groups = np.repeat(np.arange(20), 2)
    index = ObjectIndex(torch.from_numpy(vectors), groups)
    centred = vectors - vectors.mean(0)
    for query in (0, 7, 31):
        cosine = centred @ centred[query] / np.linalg.norm(centred, axis=1) / np.linalg.norm(centred[query])
        excluded = [int(groups[query]), 3]
        expected = [i for i in np.argsort(-cosine) if groups[i] not in excluded][:5]
        assert index.nearest(torch.from_numpy(vectors[query]), 5, excluded).tolist() == expected
        assert index.nearest(torch.from_numpy(vectors[query]), 1)[0] == query
        assert not np.isin(groups[index.random(50, rng, excluded)], excluded).any()
    with pytest.raises(ValueError, match="too few images"):
        index.nearest(torch.from_numpy(vectors[0]), 1, range(20))


def test_images_of_one_video_or_file_are_one_group() -> None:
    box = [[120.0, 90.0, 40.0, 40.0]]
    images = [_image(i, box, name) for i, name in enumerate(["a", "b", "c", "a", "d", "e"])]
    groups = image_groups(ImagePool(images, [[3, 4]]))
    assert groups[0] == groups[3] == groups[4]
    assert len(set(groups.tolist())) == 4


def test_objects_are_the_boxes_of_stills_and_two_frames_of_each_video() -> None:
    images = [_image(i, [[120, 90, 40, 40], [40, 60, 50, 30]]) for i in range(3)]
    images += [_image(10 + i, [[100, 80, 40, 40]], source="video") for i in range(8)]
    sampler = PairSampler(ImagePool(images, [list(range(3, 11))]), PairOptions())
    objects = list_objects(sampler, 100, np.random.default_rng(0))
    assert [image for image, _ in objects] == [0, 0, 1, 1, 2, 2, 3, 7]
    assert len(list_objects(sampler, 4, np.random.default_rng(0))) == 4


def test_scenes_name_other_objects_that_none_of_their_images_shows(
    pool: ImagePool, network: SiamRNNet, tmp_path: Path
) -> None:
    run = _training(network, pool, tmp_path, validation=0)
    sampler, groups = PairSampler(pool, run.layout), image_groups(pool)
    for seed in range(4):
        shown = groups[list(sampler.scene(np.random.default_rng(seed)).images)]
        sight = run.sight(sampler, groups, np.random.default_rng(seed))
        for rivals in (sight.nearest, sight.others):
            assert not np.isin(run.index.groups[rivals.flatten().numpy()], shown).any()


# --- training --------------------------------------------------------------------------------------------------------


def test_resuming_equals_not_stopping(pool: ImagePool, network: SiamRNNet, tmp_path: Path) -> None:
    whole = _training(network, pool, tmp_path / "whole", validation=0)
    for _ in range(4):
        whole.train_step()
    part = _training(network, pool, tmp_path / "part", validation=0)
    for _ in range(2):
        part.train_step()
    torch.save(part.state(), tmp_path / "siamrn18.pt")
    resumed = _training(network, pool, tmp_path / "part", validation=0)
    resumed.load(tmp_path / "siamrn18.pt")
    for _ in range(2):
        resumed.train_step()
    for mine, theirs in ((whole.net, resumed.net), (whole.average, resumed.average)):
        for key, value in mine.state_dict().items():
            assert torch.equal(value, theirs.state_dict()[key]), key


def test_only_the_relation_detector_and_the_class_layers_learn(
    pool: ImagePool, network: SiamRNNet, tmp_path: Path
) -> None:
    run = _training(network, pool, tmp_path, validation=0, local_detector=False)
    before = {key: value.clone() for key, value in run.net.state_dict().items()}
    for _ in range(2):
        run.train_step()
    changed = {key for key, value in run.net.state_dict().items() if not torch.equal(value, before[key])}
    allowed = ("relation", "heads.0.cls.hidden", "heads.0.cls.output", "heads.1.cls.hidden", "heads.1.cls.output")
    assert all(key.startswith(allowed) or key == "cls_fusion" for key in changed), changed
    for part in ("non_local.theta.weight", "global_detector.mlp.0.weight", "patch_detector.conv.weight"):
        assert f"relations.1.{part}" in changed
    assert not any("local_detector" in key for key in changed)  # it is left out
    assert not any("running" in key for key in changed)


def test_class_layers_without_a_rate_stay_the_base_s(pool: ImagePool, network: SiamRNNet, tmp_path: Path) -> None:
    run = _training(network, pool, tmp_path, class_rate=0.0, least_match=0.3)
    before = {key: value.clone() for key, value in run.net.state_dict().items()}
    for _ in range(3):
        run.train_step()
    changed = {key for key, value in run.net.state_dict().items() if not torch.equal(value, before[key])}
    assert changed
    assert all(key.startswith("relation") for key in changed), changed
    figures = run.validate()
    assert figures["v_first_ap"] == pytest.approx(figures["v_base_ap"])
    # A floor of 1 leaves nothing to refine.
    run.options = replace(run.options, least_match=1.0)
    figures = run.validate()
    assert figures["v_ap"] == pytest.approx(figures["v_first_ap"])
    assert figures["v_match_ap"] != pytest.approx(figures["v_first_ap"])


def test_refinement_scales_each_proposal_by_its_own_score(network: SiamRNNet) -> None:
    network.eval()
    maps = torch.rand(2, 2, 8, 10)
    scores = torch.rand(2, 10)
    with torch.no_grad():
        all_at_once = refine(network, maps, scores)
        torch.testing.assert_close(refine(network, maps, torch.ones(2, 10)), refine(network, maps))
        one = refine(network, maps[..., 3:4], scores[:, 3:4])
    torch.testing.assert_close(all_at_once[..., 3:4], one)


def test_training_validates_against_its_base_and_writes_weights(
    pool: ImagePool, network: SiamRNNet, tmp_path: Path
) -> None:
    run = _training(network, pool, tmp_path, steps=30, rate=3e-3, first=0.0)
    figures = run.validate()
    untrained = {kind: figures[f"v_{kind}iou"] for kind in ("base_", "first_")}
    assert untrained["base_"] == pytest.approx(untrained["first_"])  # as long as nothing has learned
    losses = [run.train_step()["total"] for _ in range(30)]
    assert np.mean(losses[-6:]) < 0.95 * np.mean(losses[:6])
    trained = run.validate()
    assert trained["v_base_iou"] == figures["v_base_iou"]
    assert trained["v_ap"] != figures["v_ap"]
    run.out.mkdir(exist_ok=True)
    run.on_save()
    assert "v_base_ap" in (tmp_path / "validation.jsonl").read_text()
    assert weights.network_of(tmp_path / "siamrn18.safetensors") == "siamrn18"


def test_a_run_starts_from_the_base_that_it_is_given(tmp_path: Path) -> None:
    torch.manual_seed(1)
    base = SiamBANNet(SIAMBAN18)
    weights.save(tmp_path / "backbone18.safetensors", base.backbone, "backbone18", "test")
    weights.save(tmp_path / "siamban18.safetensors", base, "siamban18", "test", backbone="backbone18")
    net = start(tmp_path / "siamban18.safetensors")
    for key, value in base.state_dict().items():
        torch.testing.assert_close(net.state_dict()[key], value, atol=1e-3, rtol=1e-3)
    with pytest.raises(weights.WeightsError, match="not of 'siamban18'"):
        start(tmp_path / "backbone18.safetensors")
