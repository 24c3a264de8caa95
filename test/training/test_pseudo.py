"""Videos from photographs: a teacher that finds red things labels views, and only what leads back is believed."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tracker_ros.geometry.boxes import Box, iou
from tracker_ros.training.data import ImagePool, TrainingImage, pyramid
from tracker_ros.training.pseudo import TEACHER_MEAN, PseudoOptions, Teacher, add_teacher_pairs, read_labels

SEEN = {
    "00040.jpg": Box(90, 70, 100, 90),
    "00041.jpg": Box(60, 80, 80, 100),
    "00043.jpg": Box(110, 60, 120, 80),
}
EASY = PseudoOptions(attempts=60)


def _view(name: str, box: Box | None, wall: int = 120) -> TrainingImage:
    picture = np.full((240, 300, 3), wall, np.uint8)
    if box is not None:
        x, y, w, h = (int(value) for value in box)
        picture[y : y + h, x : x + w] = (0, 0, 255)
        picture[y + 8 : y + h - 8 : 4, x + 8 : x + w - 8] = (0, 0, 210)
    return TrainingImage(pyramid(picture), np.zeros((0, 4), np.float32), "ukbench", name)


def _pool() -> ImagePool:
    images = [_view(name, box) for name, box in SEEN.items()]
    images += [_view("00042.jpg", None), _view("00044.jpg", Box(90, 70, 100, 90))]
    return ImagePool(images)


def _template(crop: Tensor) -> Tensor:
    assert crop.shape == (1, 3, 128, 128)
    return crop


def _search(crop: Tensor, template: Tensor) -> tuple[Tensor, Tensor]:
    """Distances to the edges of the red area, a high logit at the cell nearest to its middle."""
    assert crop.shape == (1, 3, 256, 256)
    rgb = crop[0] + torch.tensor(TEACHER_MEAN).reshape(3, 1, 1)
    rows, columns = torch.nonzero((rgb[0] > 200) & (rgb[1] < 60), as_tuple=True)
    logits, distances = torch.full((1, 1, 16, 16), -9.0), torch.ones(1, 4, 16, 16)
    if len(rows) > 20:
        x1, x2 = columns.min().item(), columns.max().item() + 1
        y1, y2 = rows.min().item(), rows.max().item() + 1
        j, i = (min(round((a + b) / 32), 15) for a, b in ((x1, x2), (y1, y2)))
        logits[0, 0, i, j] = 6.0
        distances[0, :, i, j] = torch.tensor([j * 16 - x1, i * 16 - y1, x2 - j * 16, y2 - i * 16])
    return distances, logits


@pytest.mark.parametrize(("width", "height"), [(500.0, 450.0), (300.0, 900.0)])
def test_the_teacher_answers_in_pixels_of_the_image(width: float, height: float) -> None:
    image = _view("00041.jpg", SEEN["00041.jpg"])
    teacher = Teacher(_template, _search)
    box, score = teacher.find(image, teacher.embed(image, Box(50, 60, 70, 80)), (140.0, 110.0), width, height)
    assert iou(box, SEEN["00041.jpg"]) > 0.9
    assert score > 0.99


def test_views_of_one_object_become_a_video() -> None:
    pool = _pool()
    before = len(pool)
    assert add_teacher_pairs(pool, _template, _search, seed=1, boxes_per_object=3, options=EASY) >= 1
    for sequence in pool.sequences:
        frames = [pool.images[index] for index in sequence]
        # 00042 does not show it, 00044 shows another object.
        assert {frame.name for frame in frames} <= set(SEEN)
        assert len(frames) == 3
        assert all(iou(Box(*frame.boxes[0]), SEEN[frame.name]) > 0.9 for frame in frames)
        originals = {image.name: image for image in pool.images[:before]}
        assert all(frame.levels is originals[frame.name].levels for frame in frames)
        assert not any(len(image.boxes) for image in originals.values())


def test_a_way_back_to_elsewhere_is_not_believed() -> None:
    def forgetful(crop: Tensor, template: Tensor) -> tuple[Tensor, Tensor]:
        """Right, but for half a width to the right with a template from in front of a bright wall."""
        distances, logits = _search(crop, template)
        if template[0, 1, 0, 0] > 60:
            half = (distances[:, 0] + distances[:, 2]) / 2
            distances = torch.stack(
                [distances[:, 0] - half, distances[:, 1], distances[:, 2] + half, distances[:, 3]], 1
            )
        return distances, logits

    pool = ImagePool([_view("00040.jpg", SEEN["00040.jpg"]), _view("00041.jpg", SEEN["00041.jpg"], wall=220)])
    assert add_teacher_pairs(pool, _template, forgetful, seed=1, options=EASY) == 0
    assert add_teacher_pairs(pool, _template, _search, seed=1, options=EASY) >= 1


def test_a_resumed_run_reads_the_same_boxes(tmp_path: Path) -> None:
    cache = tmp_path / "out" / "pseudo.csv"
    first, again = _pool(), _pool()
    count = add_teacher_pairs(first, _template, _search, seed=1, cache=cache, options=EASY)

    def never(*_: Tensor) -> Tensor:
        raise AssertionError("labelled again")

    assert add_teacher_pairs(again, never, never, seed=2, cache=cache) == count >= 1  # type: ignore[arg-type]
    assert again.sequences == first.sequences
    assert [i.boxes.tolist() for i in again.images] == [i.boxes.tolist() for i in first.images]
    with pytest.raises(ValueError, match="belongs to other data"):
        add_teacher_pairs(ImagePool(_pool().images[3:]), never, never, seed=1, cache=cache)  # type: ignore[arg-type]
    cache.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="expected video,image"):
        read_labels(cache)
