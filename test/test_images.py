"""Decoding of everything that cameras send. Needs no ROS: messages are plain objects with the same fields."""

import os
import struct
import sys
import zlib
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from tracker_ros import images
from tracker_ros.images import InvalidImage, UnknownEncoding, decode, decode_compressed

WIDTH, HEIGHT = 16, 12
BGR = (30, 120, 220)
#: Encoding -> one pixel of the colour BGR as it travels.
PIXELS = {
    "bgr8": (30, 120, 220),
    "8UC3": (30, 120, 220),
    "rgb8": (220, 120, 30),
    "bgra8": (30, 120, 220, 9),
    "8UC4": (30, 120, 220, 9),
    "rgba8": (220, 120, 30, 9),
}
GREY_8 = ("mono8", "8UC1")
GREY_16 = ("mono16", "16UC1")
BAYER = {"rggb": "rggb", "bggr": "bggr", "gbrg": "gbrg", "grbg": "grbg"}


def padded(rows: np.ndarray, padding: int) -> tuple[int, bytes]:
    """Rows (HxN uint8) with `padding` bytes of rubbish after each; returns step and data."""
    wide = np.full((rows.shape[0], rows.shape[1] + padding), 77, np.uint8)
    wide[:, : rows.shape[1]] = rows
    return wide.shape[1], wide.tobytes()


def scene() -> np.ndarray:
    return np.random.RandomState(0).randint(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8)


def yuv(bgr: tuple[int, int, int]) -> tuple[int, int, int]:
    """BT.601, limited range."""
    b, g, r = (v / 255 for v in bgr)
    luma = 0.299 * r + 0.587 * g + 0.114 * b
    return round(16 + 219 * luma), round(128 + 112 * (b - luma) / 0.886), round(128 + 112 * (r - luma) / 0.701)


@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize("encoding", PIXELS)
def test_colour_channels_come_out_in_bgr_order(encoding, padding):
    frame = np.empty((HEIGHT, WIDTH, len(PIXELS[encoding])), np.uint8)
    frame[:] = PIXELS[encoding]
    frame[3, 4] = 0
    step, data = padded(frame.reshape(HEIGHT, -1), padding)
    out = decode(encoding, HEIGHT, WIDTH, step, False, data)
    assert out.shape == (HEIGHT, WIDTH, 3)
    assert out.dtype == np.uint8
    assert tuple(out[0, 0]) == BGR == tuple(out[-1, -1])
    assert tuple(out[3, 4]) == (0, 0, 0)


@pytest.mark.parametrize("padding", [0, 7])
def test_bgr8_is_not_copied(padding):
    step, data = padded(scene().reshape(HEIGHT, -1), padding)
    memory = np.frombuffer(data, np.uint8)
    out = decode("bgr8", HEIGHT, WIDTH, step, False, data)
    assert np.shares_memory(out, memory)
    assert np.array_equal(out, scene())


@pytest.mark.parametrize("encoding", GREY_8)
def test_grey_8(encoding):
    grey = scene()[..., 0]
    step, data = padded(grey, 3)
    out = decode(encoding, HEIGHT, WIDTH, step, False, data)
    assert np.array_equal(out, np.repeat(grey[..., None], 3, 2))


@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("encoding", GREY_16)
def test_16_bits_are_scaled_and_byte_order_is_honoured(encoding, big, padding):
    grey = scene()[..., 1].astype(np.uint16) * 257
    step, data = padded(np.ascontiguousarray(grey.astype(">u2" if big else "<u2")).view(np.uint8), padding)
    out = decode(encoding, HEIGHT, WIDTH, step, big, data)
    assert np.array_equal(out[..., 0], scene()[..., 1])


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize(("encoding", "order"), [("bgr16", (0, 1, 2)), ("rgb16", (2, 1, 0))])
def test_16_bit_colour(encoding, order, big):
    wide = (scene().astype(np.uint16) * 257)[..., order].astype(">u2" if big else "<u2")
    data = np.ascontiguousarray(wide).tobytes()
    assert np.array_equal(decode(encoding, HEIGHT, WIDTH, WIDTH * 6, big, data), scene())


@pytest.mark.parametrize("padding", [0, 4])
@pytest.mark.parametrize(
    ("encoding", "order"), [("yuv422", "uyvy"), ("uyvy", "uyvy"), ("yuv422_yuy2", "yuyv"), ("yuyv", "yuyv")]
)
def test_yuv422_in_both_orders(encoding, order, padding):
    y, u, v = yuv(BGR)
    group = {"uyvy": (u, y, v, y), "yuyv": (y, u, y, v)}[order]
    step, data = padded(np.tile(np.array(group, np.uint8), (HEIGHT, WIDTH // 2)), padding)
    out = decode(encoding, HEIGHT, WIDTH, step, False, data)
    assert np.abs(out.astype(int) - BGR).max() <= 3


@pytest.mark.parametrize("padding", [0, 6])
@pytest.mark.parametrize("encoding", ["nv12", "nv21", "nv24"])
def test_planar_yuv(encoding, padding):
    y, u, v = yuv(BGR)
    step = WIDTH + padding
    luma = np.full((HEIGHT, step), 77, np.uint8)
    luma[:, :WIDTH] = y
    pair = (v, u) if encoding == "nv21" else (u, v)
    if encoding == "nv24":
        chroma = np.full((HEIGHT, 2 * step), 77, np.uint8)
        chroma[:, : 2 * WIDTH] = np.tile(np.array(pair, np.uint8), WIDTH)
    else:
        chroma = np.full((HEIGHT // 2, step), 77, np.uint8)
        chroma[:, :WIDTH] = np.tile(np.array(pair, np.uint8), WIDTH // 2)
    out = decode(encoding, HEIGHT, WIDTH, step, False, luma.tobytes() + chroma.tobytes())
    assert out.shape == (HEIGHT, WIDTH, 3)
    assert np.abs(out.astype(int) - BGR).max() <= 3


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("pattern", BAYER)
def test_bayer_patterns(pattern, big, bits):
    colours = dict(zip("bgr", BGR, strict=True))
    tile = np.array([colours[c] for c in pattern], np.uint16).reshape(2, 2)
    mosaic = np.tile(tile, (HEIGHT // 2, WIDTH // 2))
    mosaic = mosaic.astype(np.uint8) if bits == 8 else (mosaic * 257).astype(">u2" if big else "<u2")
    step, data = padded(np.ascontiguousarray(mosaic).view(np.uint8).reshape(HEIGHT, -1), 5)
    out = decode(f"bayer_{pattern}{bits}", HEIGHT, WIDTH, step, big, data)
    assert np.abs(out[2:-2, 2:-2].astype(int) - BGR).max() <= 1


@pytest.mark.parametrize("encoding", images.ENCODINGS)
def test_every_encoding_refuses_malformed_images_by_name(encoding):
    values = {"encoding": encoding, "height": 12, "width": 16, "step": 16 * 8, "is_bigendian": False}
    size = {"nv12": 1.5, "nv21": 1.5, "nv24": 3}.get(encoding, 1) * 12 * 16 * 8
    good = bytes(int(size))
    assert decode(**values, data=good).shape == (12, 16, 3)
    for wrong, words in [
        ({"data": good[:-1]}, "bytes of data"),
        ({"data": good + b"\0"}, "bytes of data"),
        ({"data": b""}, "bytes of data"),
        ({"width": 0}, "empty"),
        ({"height": 0}, "empty"),
        ({"step": 15}, "step is 15"),
        ({"width": 2**31}, "step is"),
    ]:
        with pytest.raises(InvalidImage, match=words):
            decode(**{**values, "data": good, **wrong})


@pytest.mark.parametrize("encoding", ["yuv422", "yuyv", "nv12", "nv21", "nv24", "bayer_rggb8"])
def test_odd_width_where_pixels_come_in_pairs(encoding):
    with pytest.raises(InvalidImage, match="even width"):
        decode(encoding, 12, 15, 15 * 2, False, bytes(12 * 30))


@pytest.mark.parametrize("encoding", ["nv12", "bayer_grbg16"])
def test_odd_height_where_rows_come_in_pairs(encoding):
    with pytest.raises(InvalidImage, match="even height"):
        decode(encoding, 11, 16, 32, False, bytes(11 * 32))


def test_smallest_bayer_image():
    assert decode("bayer_rggb8", 2, 2, 2, False, bytes(4)).shape == (2, 2, 3)


def test_unknown_encoding_lists_the_known_ones(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv_bridge", None)  # As if it were not installed.
    message = SimpleNamespace(encoding="32FC7", height=2, width=2, step=56, is_bigendian=0, data=bytes(112))
    for function in (images.from_message, images.check_message):
        with pytest.raises(UnknownEncoding, match=r"'32FC7'.*bgr8.*nv12"):
            function(message)


def jpeg(image: np.ndarray, extension: str = ".jpg") -> bytes:
    ok, data = cv2.imencode(extension, image)
    assert ok
    return data.tobytes()


@pytest.mark.parametrize("format", ["jpeg", "rgb8; jpeg compressed bgr8", "bgr8; jpeg compressed bgr8", ""])
def test_jpeg(format):
    smooth = np.full((48, 64, 3), BGR, np.uint8)
    out = decode_compressed(format, jpeg(smooth))
    assert np.abs(out.astype(int) - BGR).max() <= 3


def test_png_is_exact_and_written_channel_order_is_honoured():
    assert np.array_equal(decode_compressed("bgr8; png compressed bgr8", jpeg(scene(), ".png")), scene())
    assert np.array_equal(decode_compressed("rgb8; png compressed rgb8", jpeg(scene()[..., ::-1], ".png")), scene())


def test_grey_alpha_and_16_bit_png():
    grey = scene()[..., 0]
    assert np.array_equal(decode_compressed("mono8; png compressed ", jpeg(grey, ".png"))[..., 2], grey)
    out = decode_compressed("mono16; png compressed ", jpeg(grey.astype(np.uint16) * 257, ".png"))
    assert np.array_equal(out[..., 0], grey)
    alpha = np.dstack([scene(), grey])
    assert np.array_equal(decode_compressed("bgra8; png compressed bgra8", jpeg(alpha, ".png")), scene())


def test_compressed_bayer_is_demosaiced_only_if_it_still_is_one():
    tile = np.array([[220, 120], [120, 30]], np.uint8)
    mosaic = np.tile(tile, (HEIGHT // 2, WIDTH // 2))
    out = decode_compressed("bayer_rggb8; png compressed ", jpeg(mosaic, ".png"))
    assert np.abs(out[2:-2, 2:-2].astype(int) - BGR).max() <= 1
    out = decode_compressed("bayer_rggb8; png compressed bgr8", jpeg(scene(), ".png"))
    assert np.array_equal(out, scene())


def test_orientation_tags_are_ignored():
    # An EXIF block that says "rotate by 90 degrees", put after the start marker.
    tiff = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
    block = b"Exif\0\0" + tiff
    data = jpeg(scene())
    data = data[:2] + b"\xff\xe1" + (len(block) + 2).to_bytes(2, "big") + block + data[2:]
    assert cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR).shape == (WIDTH, HEIGHT, 3)
    assert decode_compressed("jpeg", data).shape == (HEIGHT, WIDTH, 3)


@pytest.mark.parametrize(
    ("format", "data", "words"),
    [
        ("jpeg", b"", "no data"),
        ("jpeg", b"not a picture at all", "can't be read as an image: it begins with"),
        ("jpeg", jpeg(np.zeros((64, 64, 3), np.uint8))[:-40], "cut short"),
        ("png", jpeg(np.zeros((64, 64, 3), np.uint8), ".png")[:-12], "cut short"),
        ("png", b"\x89PNG\r\n\x1a\n" + b"\0" * 30 + b"IEND", "the header of this PNG is damaged"),
        ("16UC1; compressedDepth png", b"\0" * 40, "depth"),
    ],
)
def test_bad_compressed_images_are_refused_by_name(format, data, words):
    with pytest.raises(InvalidImage, match=words):
        decode_compressed(format, data)


SUFFIXES = [".jpg", ".png", ".bmp", ".tif", ".webp", ".gif", ".ppm", ".jp2"]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("after", [bytes(63), bytes(80), b"\r\n", b"a second \xff\xd8 picture", bytes(5000)])
def test_what_follows_the_end_of_a_picture_is_left_alone(suffix, after, tmp_path):
    data = encoded(suffix)
    expected = decode_compressed("", data)
    assert np.array_equal(decode_compressed("", data + after), expected)
    (tmp_path / f"x{suffix}").write_bytes(data + after)
    assert np.array_equal(images.read_file(tmp_path / f"x{suffix}"), expected)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("part", [0.02, 0.4, 0.9, 0.99])
def test_a_picture_that_is_cut_short_is_refused_in_messages_and_on_disk(suffix, part, tmp_path):
    data = encoded(suffix)
    data = data[: int(part * len(data))]
    with pytest.raises(InvalidImage, match=r"cut short|can't"):
        decode_compressed("", data)
    (tmp_path / f"x{suffix}").write_bytes(data)
    with pytest.raises(InvalidImage, match=rf"x\{suffix}'.*(cut short|can't)|OpenCV can't read '.*x\{suffix}'"):
        images.read_file(tmp_path / f"x{suffix}")


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_a_file_whose_end_was_never_written_is_refused(suffix):
    """After a power failure a file may have its length and zeros at its end."""
    data = encoded(suffix)
    half = len(data) // 2
    with pytest.raises(InvalidImage, match=r"cut short|can't read"):
        decode_compressed("", data[:half] + bytes(len(data) - half))


def test_the_end_of_a_thumbnail_is_not_the_end_of_the_picture():
    thumbnail = b"Exif\0\0" + jpeg(np.zeros((8, 8, 3), np.uint8))
    data = jpeg(scene())
    data = data[:2] + b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail + data[2:]
    assert decode_compressed("jpeg", data).shape == (HEIGHT, WIDTH, 3)
    with pytest.raises(InvalidImage, match="cut short"):
        decode_compressed("jpeg", data[:-30])


def test_progressive_jpeg_has_several_scans():
    ok, data = cv2.imencode(".jpg", cv2.resize(scene(), (160, 120)), [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])
    assert ok
    assert decode_compressed("jpeg", data).shape == (120, 160, 3)
    with pytest.raises(InvalidImage, match="cut short"):
        decode_compressed("jpeg", data[:-2])


def encoded(suffix: str, size: tuple[int, int] = (160, 120)) -> bytes:
    random = np.random.RandomState(0).randint(0, 256, (6, 8, 3)).astype(np.uint8)
    return jpeg(cv2.resize(random, size, interpolation=cv2.INTER_CUBIC), suffix)


def declared(kind: str, width: int, height: int) -> bytes:
    """A small file that says that it is large."""
    big, little = struct.pack(">II", width, height), struct.pack("<II", width, height)
    data = encoded("." + kind)
    if kind == "jpg":
        at = data.index(b"\xff\xc0") + 5
        return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]
    if kind == "png":
        chunk = b"IHDR" + big + data[24:29]
        return data[:12] + chunk + zlib.crc32(chunk).to_bytes(4, "big") + data[33:]
    if kind == "bmp":
        return data[:18] + little + data[26:30] + b"\x01\0\0\0" + data[34:]  # RLE: the file's length tells nothing
    if kind == "gif":
        return data[:6] + struct.pack("<HH", width, height) + data[10:]
    if kind == "jp2":
        at = data.index(b"\xff\x4f\xff\x51") + 8
        return data[:at] + big + data[at + 8 :]
    if kind == "tif":
        at = data.index(struct.pack("<HH", 256, 3)) if struct.pack("<HH", 256, 3) in data else -1
        at = at if at >= 0 else data.index(struct.pack("<HH", 256, 4))
        entry = struct.pack("<HHI", 256, 4, 1) + struct.pack("<I", width)
        entry += struct.pack("<HHI", 257, 4, 1) + struct.pack("<I", height)
        return data[:at] + entry + data[at + 24 :]
    assert kind == "ppm"
    return f"P6\n# large\n{width} {height}\n255\n".encode() + bytes(100)


@pytest.mark.parametrize("kind", ["jpg", "png", "bmp", "gif", "jp2", "tif", "ppm"])
def test_a_file_that_declares_too_many_pixels_is_refused_before_it_is_decoded(kind, tmp_path):
    data = declared(kind, 30000, 30000)
    path = tmp_path / f"large.{kind}"
    path.write_bytes(data)
    for read in (lambda: decode_compressed("", data), lambda: images.read_file(path)):
        with pytest.raises(InvalidImage, match="of 30000x30000, 900 Mpx; at most 64 Mpx are read"):
            read()
    with pytest.raises(InvalidImage, match="large"):
        images.read_file(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_limit_of_pixels_can_be_set(suffix):
    data = encoded(suffix)
    assert decode_compressed("", data, max_pixels=160 * 120).shape == (120, 160, 3)
    with pytest.raises(InvalidImage, match="of 160x120, 0 Mpx; at most"):
        decode_compressed("", data, max_pixels=160 * 120 - 1)


def test_what_is_no_regular_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    with open(tmp_path / "huge.png", "wb") as huge:
        huge.truncate(1 << 40)
    for name, words in {
        "pipe": "no file", "folder": "no file", "huge": "fill", "nothing": "not there"
    }.items():  # fmt: skip
        with pytest.raises(InvalidImage, match=words):
            images.read_file(tmp_path / f"{name}.{'png' if name == 'huge' else 'jpg'}")


def test_names_of_any_bytes_are_read_and_written(tmp_path):
    path = tmp_path / os.fsdecode(b"caf\xe9.png")
    images.write_file(path, scene())
    assert np.array_equal(images.read_file(path), scene())


def thermal(low: int, high: int, shift: int = 0, dtype=np.uint16) -> np.ndarray:
    """A ramp of values from `low` to `high`."""
    return np.tile(np.linspace(low, high, 64).round(), (48, 1)).astype(dtype) + dtype(shift)


def as_message(image: np.ndarray, encoding: str = "mono16") -> SimpleNamespace:
    height, width = image.shape[:2]
    return SimpleNamespace(
        encoding=encoding, height=height, width=width, step=image.nbytes // height, is_bigendian=0, data=image.tobytes()
    )


@pytest.mark.parametrize(("low", "high"), [(7400, 7655), (0, 1023), (0, 4095), (29000, 31000), (65000, 65535), (3, 9)])
@pytest.mark.parametrize("way", ["message", "compressed", "file", "tiff"])
def test_a_small_part_of_the_range_is_seen_and_the_scale_stays(low, high, way, tmp_path):
    def read(image: np.ndarray) -> np.ndarray:
        if way == "message":
            return images.from_message(as_message(image), scale)
        if way == "compressed":
            return decode_compressed("mono16; png compressed ", jpeg(image, ".png"), scale)
        path = tmp_path / ("x.tif" if way == "tiff" else "x.png")
        path.write_bytes(jpeg(image, path.suffix))
        return images.read_file(path, scale)

    scale = images.GreyScale()
    first = read(thermal(low, high))
    levels = len(np.unique(first))
    assert levels >= min(60, high - low)
    assert first.min() > 0 or low == 0  # There is room on either side for what is colder and hotter,
    assert first.max() < 255 or high == 65535
    limits = scale.limits
    assert f"{limits[0]:g} to {limits[1]:g}" in str(scale)
    step = (high - low) // 10  # and what is hotter later is brighter: the scale stays.
    if high + step < 65536:
        second = read(thermal(low, high, step))
        assert scale.limits == limits
        assert np.all(second >= first)
        assert second.mean() > first.mean() or step == 0
    assert first.shape == (48, 64, 3)


def test_a_hot_pixel_does_not_hide_the_picture():
    image = thermal(7400, 7655)
    image[5, 5] = 65535
    assert len(np.unique(images.GreyScale()(image))) > 50


def test_what_uses_the_range_is_left_as_it_is():
    grey = np.repeat(np.arange(256, dtype=np.uint16) * 257, 4).reshape(32, 32)
    assert np.array_equal(images.GreyScale()(grey), (grey // 257).astype(np.uint8))
    assert np.array_equal(images.GreyScale()(scene()), scene())


def test_limits_can_be_given():
    scale = images.GreyScale.parse("7000, 8000")
    out = scale(np.array([[0, 7000, 7500, 8000, 65535]], np.uint16))
    assert out.tolist() == [[0, 0, 128, 255, 255]]
    assert images.GreyScale.parse("auto").limits is None
    for text in ("", "high", "5", "8,7", "1,2,3", "nan,5"):
        with pytest.raises(ValueError, match="a grey scale is 'auto' or 'low,high'"):
            images.GreyScale.parse(text)


def test_floating_point_pictures_are_scaled_too(tmp_path):
    celsius = thermal(0, 1000).astype(np.float32) / 50 + 15
    celsius[0, 0] = np.nan
    (tmp_path / "x.tif").write_bytes(jpeg(celsius, ".tif"))
    out = images.read_file(tmp_path / "x.tif", images.GreyScale())
    assert len(np.unique(out)) > 50
    assert out[1, -1, 0] > out[1, 0, 0] > 0
