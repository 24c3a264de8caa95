"""Decoding of everything that cameras send. Needs no ROS: messages are plain objects with the same fields."""

import sys
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
        ("jpeg", b"not a picture at all", "can't read"),
        ("jpeg", jpeg(np.zeros((64, 64, 3), np.uint8))[:-40], "cut short"),
        ("png", jpeg(np.zeros((64, 64, 3), np.uint8), ".png")[:-12], "cut short"),
        ("png", b"\x89PNG\r\n\x1a\n" + b"\0" * 30 + b"IEND", "can't read"),
        ("16UC1; compressedDepth png", b"\0" * 40, "depth"),
    ],
)
def test_bad_compressed_images_are_refused_by_name(format, data, words):
    with pytest.raises(InvalidImage, match=words):
        decode_compressed(format, data)
