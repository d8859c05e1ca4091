"""Files as cameras, scanners and annotation tools write them, made by Pillow, and the values that must be read."""

from __future__ import annotations

import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from plopcli.data.checking import check_pair
from plopcli.data.reading import UnusableFileError, as_shown, read_image, read_mask, read_mask_of, read_pair
from plopcli.data.samples import Sample
from plopcli.errors import DataError
from plopcli.inference.model import as_image

SAME = np.arange(256, dtype=np.uint8)
#: How an upright array is stored so that each EXIF orientation brings it back.
STORED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a),
    7: lambda a: np.rot90(a.swapaxes(0, 1), 2),
    8: lambda a: np.rot90(a, -1),
}


def colours(height: int = 4, width: int = 6) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)


def ids(height: int = 4, width: int = 6) -> np.ndarray:
    return np.arange(height * width, dtype=np.uint8).reshape(height, width) % 4


def exif(orientation: int) -> Image.Exif:
    said = Image.Exif()
    said[274] = orientation
    return said


def png(path: Path, values: np.ndarray, depth: int, colour_type: int = 0) -> None:
    """A PNG of grey values (H, W) or colours (H, W, C) with any bit depth, by the specification alone."""
    rows = b""
    for row in values.reshape(len(values), -1):
        bits = "".join(f"{int(value):0{depth}b}" for value in row)
        bits += "0" * (-len(bits) % 8)
        rows += b"\0" + int(bits, 2).to_bytes(len(bits) // 8, "big")
    height, width = values.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    framed = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(framed))


def ramp(top: int) -> np.ndarray:
    return np.linspace(0, top, 24).round().reshape(4, 6)


def grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(values.round().astype(np.uint8)[..., None], 3, axis=2)


def over_white(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None] / 255
    return pixels * share + 255 * (1 - share)


def pictures(folder: Path) -> dict[str, tuple[Path, np.ndarray, int]]:
    """Kind -> file, expected pixels, and by how much a codec may be off."""
    rgb, alpha = colours(), np.linspace(0, 255, 24).round().astype(np.uint8).reshape(4, 6)
    made: dict[str, tuple[Path, np.ndarray, int]] = {}

    def add(kind: str, image: Image.Image, expected: np.ndarray, off: int = 0, suffix: str = "png", **save: object):
        path = folder / f"{kind}.{suffix}"
        image.save(path, **save)
        made[kind] = path, expected, off

    add("RGB", Image.fromarray(rgb), rgb)
    add("grey", Image.fromarray(rgb[..., 0]), grey(rgb[..., 0]))
    add("two-valued", Image.fromarray(rgb[..., 0] > 99), grey((rgb[..., 0] > 99) * 255.0))
    add("16 bit", Image.fromarray(ramp(65535).astype(np.uint16)), grey(ramp(65535) / 257))
    add("12 bit", Image.fromarray(ramp(4095).astype(np.uint16)), grey(ramp(4095) / 4095 * 255))
    add("16 bit tiff", Image.fromarray(ramp(65535).astype(np.uint16)), grey(ramp(65535) / 257), suffix="tiff")
    add("float tiff", Image.fromarray(ramp(1000).astype(np.float32) / 1000), grey(ramp(1000) / 1000 * 255), 1, "tiff")
    add("RGBA", Image.fromarray(np.dstack([rgb, alpha])), over_white(rgb, alpha), 1)
    add("LA", Image.fromarray(np.dstack([rgb[..., 0], alpha]), "LA"), over_white(grey(rgb[..., 0] + 0.0), alpha), 1)
    add("RGBA webp", Image.fromarray(np.dstack([rgb, alpha | 1])), over_white(rgb, alpha | 1), 1, "webp", lossless=True)
    indexed = Image.fromarray(ids(), "P")
    indexed.putpalette([10, 20, 30, 200, 0, 0, 0, 200, 0, 0, 0, 200])
    shown = np.array([[10, 20, 30], [200, 0, 0], [0, 200, 0], [0, 0, 200]])[ids()]
    add("palette", indexed, shown)
    seen = np.where((ids() == 1)[..., None], 255, shown)
    add("palette with a clear colour", indexed, seen, transparency=1)
    clear = tuple(rgb[0, 0].tolist())
    seen = np.where((rgb == rgb[0, 0]).all(axis=2, keepdims=True), 255, rgb)
    add("RGB with a clear colour", Image.fromarray(rgb), seen, transparency=clear)
    flat = np.full((16, 16, 3), (200, 40, 90), dtype=np.uint8)
    add("CMYK", Image.fromarray(flat).convert("CMYK"), flat, 6, "jpg", quality=100)
    for depth, kind in ((2, "2 bits"), (4, "4 bits")):
        made[kind] = folder / f"{kind}.png", grey(ids() * (255 / (2**depth - 1))), 0
        png(made[kind][0], ids(), depth)
    made["16 bits per colour"] = folder / "48.png", rgb, 0
    png(made["16 bits per colour"][0], rgb.astype(int) * 257, 16, 2)
    for orientation, store in STORED.items():
        for suffix, off in (("png", 0), ("tiff", 0), ("webp", 0)):
            save = {"lossless": True} if suffix == "webp" else {}
            image = Image.fromarray(np.ascontiguousarray(store(rgb)))
            add(f"turned {orientation} {suffix}", image, rgb, off, suffix, exif=exif(orientation), **save)
    return made


def test_pictures_are_read_alike_by_training_prediction_and_python(tmp_path):
    mask = tmp_path / "mask.png"
    for kind, (path, expected, off) in pictures(tmp_path).items():
        height, width = expected.shape[:2]
        Image.fromarray(ids(height, width)).save(mask)
        read = np.asarray(read_image(path))
        assert read.shape == expected.shape, kind
        assert np.abs(read - np.asarray(expected, dtype=float)).max() <= off, kind
        assert np.array_equal(as_image(path), read), kind
        assert np.array_equal(as_image(Image.open(path)), read), kind
        assert np.array_equal(as_shown(as_shown(Image.open(path))), read), kind
        trained = read_pair(Sample("a", path, mask, drawn_as_stored=True))[0]
        assert np.array_equal(trained, read), kind


def test_ordinary_files_keep_the_values_that_pillow_gives(tmp_path):
    big = np.kron(colours(), np.ones((16, 16, 1), dtype=np.uint8))
    for name in ("a.jpg", "a.png"):
        Image.fromarray(big).save(tmp_path / name)
        assert np.array_equal(read_image(tmp_path / name), np.asarray(Image.open(tmp_path / name)))
    for mode in ("P", "L"):
        image = Image.fromarray(SAME.reshape(16, 16))
        if mode == "P":
            image.putpalette(np.random.default_rng(0).integers(0, 256, 768, dtype=np.uint8).tobytes())
        image.save(tmp_path / "mask.png")
        read = read_mask(tmp_path / "mask.png")
        assert read.mode == mode
        assert np.array_equal(read, SAME.reshape(16, 16))


def test_a_mask_follows_its_picture_or_the_pair_is_refused(tmp_path):
    rgb, truth, table = colours(), ids(), SAME
    image, mask = tmp_path / "a.png", tmp_path / "m.png"
    sample, published = Sample("a", image, mask), Sample("a", image, mask, drawn_as_stored=True)
    for orientation, store in STORED.items():
        stored = np.ascontiguousarray(store(truth))
        Image.fromarray(np.ascontiguousarray(store(rgb))).save(image, exif=exif(orientation))
        ways = {"stored": (stored, {}), "said": (stored, {"exif": exif(orientation)}), "shown": (truth, {})}
        for way, (drawn, save) in ways.items():
            Image.fromarray(drawn).save(mask, **save)
            told = orientation >= 5 or orientation == 1 or way == "said"
            counts, problem, _ = check_pair(sample, 4, table)
            assert (problem is None) == told, (orientation, way)
            if told:
                assert counts[:4].tolist() == [6, 6, 6, 6]
                for pair in (read_pair(sample), (read_image(image), read_mask_of(sample))):
                    assert np.array_equal(pair[0], rgb), (orientation, way)
                    assert np.array_equal(pair[1], truth), (orientation, way)
            else:
                assert problem.kind == "orientation unclear"
                assert f"EXIF orientation {orientation}" in problem.message
                with pytest.raises(DataError, match="nothing tells whether its mask"):
                    read_pair(sample)
            if way == "stored":
                assert np.array_equal(read_pair(published)[1], truth), orientation


def test_a_square_picture_on_its_side_does_not_tell_how_its_mask_lies(tmp_path):
    Image.fromarray(colours(6, 6)).save(tmp_path / "a.jpg", exif=exif(6))
    Image.fromarray(ids(6, 6)).save(tmp_path / "m.png")
    sample = Sample("a", tmp_path / "a.jpg", tmp_path / "m.png")
    _, problem, _ = check_pair(sample, 4, SAME, whole=True)
    assert problem is not None
    assert problem.kind == "orientation unclear"


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_masks_of_few_bits_keep_their_ids(tmp_path, depth):
    stored = (np.arange(24).reshape(4, 6) % 2**depth).astype(np.uint8)
    png(tmp_path / "m.png", stored, depth)
    assert np.array_equal(read_mask(tmp_path / "m.png"), stored)
    indexed = Image.fromarray(stored)
    indexed.putpalette(colours(1, 2**depth).tobytes())
    indexed.save(tmp_path / "p.png", bits=depth)
    assert np.array_equal(read_mask(tmp_path / "p.png"), stored)


def test_a_tiff_mask_that_counts_from_white_keeps_its_ids(tmp_path):
    values = ids() % 2
    Image.fromarray(values == 1).save(tmp_path / "m.tif", tiffinfo={262: 1})
    assert np.array_equal(read_mask(tmp_path / "m.tif"), values)
    content = (tmp_path / "m.tif").read_bytes()
    black_is_zero, white_is_zero = (struct.pack("<HHIHH", 262, 3, 1, sign, 0) for sign in (1, 0))
    assert content.count(black_is_zero) == 1
    (tmp_path / "w.tif").write_bytes(content.replace(black_is_zero, white_is_zero))
    assert np.array_equal(read_mask(tmp_path / "w.tif"), values)


def test_twelve_bits_per_colour_in_sixteen_are_told(tmp_path):
    png(tmp_path / "a.png", colours().astype(int) * 16, 16, 2)
    Image.fromarray(ids()).save(tmp_path / "m.png")
    _, problem, _ = check_pair(Sample("a", tmp_path / "a.png", tmp_path / "m.png"), 4, SAME, whole=True)
    assert problem is not None
    assert problem.kind == "image of 12 bits"


def header_only(path: Path, width: int, height: int) -> None:
    png(path, np.zeros((1, 8), dtype=np.uint8), 8)
    content = bytearray(path.read_bytes())
    content[16:24] = struct.pack(">II", width, height)
    content[29:33] = struct.pack(">I", zlib.crc32(bytes(content[12:29])))
    path.write_bytes(bytes(content))


def test_too_large_is_not_broken(tmp_path):
    header_only(tmp_path / "a.png", 14000, 13000)
    for read, kind in ((read_image, "image too large"), (read_mask, "mask too large")):
        with pytest.raises(UnusableFileError, match="182000000 pixels") as caught:
            read(tmp_path / "a.png")
        assert caught.value.kind == kind


def test_large_pictures_are_read_without_a_warning_of_pillow(tmp_path):
    Image.new("L", (9700, 9700)).save(tmp_path / "a.png")
    code = f"from pathlib import Path; from plopcli.data.reading import read_mask; read_mask(Path('{tmp_path}/a.png'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""


def test_opened_images_that_break_are_told_as_files_are(tmp_path):
    Image.fromarray(np.kron(colours(), np.ones((16, 16, 1), dtype=np.uint8))).save(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:-200])
    with Image.open(tmp_path / "a.png") as opened, pytest.raises(DataError, match=r"a\.png cannot be decoded"):
        as_image(opened)


@pytest.mark.parametrize("name", ["a\0b.png", "n" * 300 + ".png"])
def test_names_that_no_file_can_have(tmp_path, name):
    with pytest.raises(UnusableFileError) as caught:
        read_image(tmp_path / name)
    assert caught.value.kind == "image unreadable"


@pytest.mark.parametrize(
    ("name", "begins"), [("a.heic", b"\0\0\0\x18ftypheic"), ("a.jpg", b"\0\0\0\x18ftypheic"), ("a.npy", b"x")]
)
def test_another_format_is_not_broken(tmp_path, name, begins):
    (tmp_path / name).write_bytes(begins + bytes(40))
    with pytest.raises(UnusableFileError, match="of a format that is not read") as caught:
        read_image(tmp_path / name)
    assert caught.value.kind == "image of another format"
    (tmp_path / "b.jpg").write_bytes(b"no picture")
    with pytest.raises(UnusableFileError, match="cannot be decoded"):
        read_image(tmp_path / "b.jpg")
