"""Packs: what is written is read back, in parts that stay small, and damage is noticed."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from tracker_ros import cli
from tracker_ros.training.data import ImagePool, TrainingImage, pyramid
from tracker_ros.training.layouts import open_data
from tracker_ros.training.pack import MANIFEST, PackOptions, read_pack, sha256, write_pack


def _image(width: int, height: int, boxes: list[list[float]], name: str, source: str = "coco") -> TrainingImage:
    coarse = np.random.default_rng(len(name) + width).integers(0, 255, (6, 8, 3), np.uint8)
    picture = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return TrainingImage(pyramid(picture), np.asarray(boxes, np.float32).reshape(-1, 4), source, name)


@pytest.fixture
def pool() -> ImagePool:
    images = [
        _image(320, 240, [[10, 20, 30, 40], [1.5, 2.5, 100, 90]], "a.jpg"),
        _image(800, 600, [[400, 300, 100, 50]], "großes Bild.jpg"),
        _image(200, 150, [], "no box.jpg", "ukbench"),
        *(_image(160, 120, [[20 + i, 30, 25, 25]], f"{i:06d}.jpg", "drone") for i in range(3)),
    ]
    return ImagePool(images, [[3, 4, 5], [5, 3]], {"drone"})


def test_a_pack_is_read_back_as_it_was(pool: ImagePool, tmp_path: Path) -> None:
    manifest = write_pack(pool, tmp_path, PackOptions(longest=400, quality=95))
    assert manifest["images"] == 6
    again = read_pack(tmp_path)
    assert again.sequences == pool.sequences
    assert again.loose == pool.loose
    for old, new in zip(pool.images, again.images, strict=True):
        assert (new.name, new.source) == (old.name, old.source)
        scale = min(1, 400 / max(old.size))
        assert new.size == (round(old.size[0] * scale), round(old.size[1] * scale))
        np.testing.assert_allclose(new.boxes, old.boxes * scale, atol=1e-4)
        small = cv2.resize(old.levels[0], new.size, interpolation=cv2.INTER_AREA).astype(float)
        assert np.abs(small - new.levels[0]).mean() < 2


def test_parts_stay_below_their_limit_and_are_listed(pool: ImagePool, tmp_path: Path) -> None:
    manifest = write_pack(pool, tmp_path, PackOptions(part_megabytes=0.05))
    files = sorted(tmp_path.glob("part-*.safetensors"))
    assert len(files) > 1
    assert [part["file"] for part in manifest["parts"]] == [file.name for file in files]
    assert all(file.stat().st_size <= 50000 for file in files)
    assert [part["sha256"] for part in manifest["parts"]] == [sha256(file) for file in files]
    assert sum(part["images"] for part in manifest["parts"]) == 6
    assert [image.name for image in read_pack(tmp_path).images] == [image.name for image in pool.images]


def test_a_pack_is_a_layout_of_training_data(pool: ImagePool, tmp_path: Path) -> None:
    write_pack(pool, tmp_path / "pack")
    found = open_data([f"pack:{tmp_path / 'pack'}"])
    assert [image.size for image in found.images] == [(320, 240), (640, 480), (200, 150)] + 3 * [(160, 120)]
    assert found.sequences == pool.sequences
    assert found.loose == {"drone"}
    assert [level.shape for level in found.images[1].levels] == [(480, 640, 3), (240, 320, 3), (120, 160, 3)]
    assert len(found.images[1].levels) == 3
    with pytest.raises(FileNotFoundError, match=r"pack: .*manifest\.json not found"):
        open_data([f"pack:{tmp_path}"])


def test_an_image_that_fits_no_part_is_named(pool: ImagePool, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"image .* more than a part of 0\.005 MB"):
        write_pack(pool, tmp_path, PackOptions(part_megabytes=0.005))
    assert not (tmp_path / MANIFEST).exists()


@pytest.mark.parametrize(("changes", "message"), [({"longest": 8}, "longest"), ({"quality": 0}, "quality")])
def test_options_are_checked(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PackOptions(**changes)


def test_damage_is_named(pool: ImagePool, tmp_path: Path) -> None:
    write_pack(pool, tmp_path, PackOptions(part_megabytes=0.05))
    part = tmp_path / "part-001.safetensors"
    content = bytearray(part.read_bytes())
    content[-100] ^= 1
    part.write_bytes(content)
    with pytest.raises(ValueError, match=r"part-001\.safetensors is not the file"):
        read_pack(tmp_path)
    part.unlink()
    with pytest.raises(FileNotFoundError, match=r"missing: part-001\.safetensors"):
        read_pack(tmp_path)
    (tmp_path / MANIFEST).unlink()
    with pytest.raises(FileNotFoundError, match="tracker_ros pack"):
        read_pack(tmp_path)


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ("{", "not the manifest"),
        ("[]", "not the manifest"),
        (json.dumps({"format": "other"}), "format 'other'"),
        (
            json.dumps(
                {
                    "format": "tracker_ros-pack-1",
                    "images": 1,
                    "loose": [],
                    "sequences": [],
                    "parts": [{"file": "../x", "bytes": 1, "sha256": ""}],
                }
            ),
            "outside of its folder",
        ),
    ],
)
def test_a_wrong_manifest_is_refused(manifest: str, message: str, tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text(manifest)
    with pytest.raises(ValueError, match=message):
        read_pack(tmp_path)


def test_the_command_packs_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "video"
    (folder / "img").mkdir(parents=True)
    for number in range(3):
        cv2.imwrite(str(folder / "img" / f"{number:06d}.jpg"), np.full((90, 120, 3), 80 * number, np.uint8))
    (folder / "groundtruth.txt").write_text("1,2,30,40\nnan,nan,nan,nan\n5,6,30,40\n")
    arguments = ["pack", "--loose-sequences", str(folder), "--sequence-step", "1", "--out", str(tmp_path / "pack")]
    assert cli.main(arguments) == 0
    assert "3 images with 2 boxes, 1 videos" in capsys.readouterr().out
    again = read_pack(tmp_path / "pack")
    assert again.sequences == [[0, 1, 2]]
    assert again.loose == {"video"}
    assert cli.main(arguments) == 2
    assert "already holds a pack" in capsys.readouterr().err
    assert cli.main(["pack", "--out", str(tmp_path / "none")]) == 2
    assert "nothing to pack" in capsys.readouterr().err
