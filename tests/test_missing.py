"""Pictures of which a part is missing are set aside, however well their files begin and end."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from benchmarks.hostile import chunk, png, radiograph, saved
from osteo.reading.pictures import TRUNCATED, Unusable
from osteo.reading.reader import read_header, read_picture

GREY = radiograph(96, 64, 8)
RADIOGRAPH = Image.fromarray(GREY)
END = b"\xff\xd9"
JPEGS = {
    "grey": saved(RADIOGRAPH, "JPEG", quality=90),
    "rgb": saved(RADIOGRAPH.convert("RGB"), "JPEG", quality=90),
    "cmyk": saved(RADIOGRAPH.convert("CMYK"), "JPEG", quality=90),
    "progressive": saved(RADIOGRAPH, "JPEG", quality=90, progressive=True),
    "with restarts": saved(RADIOGRAPH, "JPEG", quality=90, restart_marker_blocks=4),
}
PALETTE = chunk(b"PLTE", bytes(np.repeat(range(256), 3).tolist()))


@pytest.mark.parametrize("name", JPEGS)
def test_a_jpeg_with_an_end_but_not_all_of_its_data(name: str) -> None:
    whole = JPEGS[name]
    assert read_picture(whole).shape == GREY.shape
    scan = whole.index(b"\xff\xda")
    begun = scan + 2 + struct.unpack(">H", whole[scan + 2 : scan + 4])[0]
    for cut in (len(whole) // 2, len(whole) * 9 // 10, begun):
        for size in (0, 10):  # all pixels, and fewer
            with pytest.raises(Unusable, match="truncated"):
                read_picture(whole[:cut] + END, size)
    with pytest.raises(Unusable, match=r"damaged picture|truncated"):
        read_picture(whole[:scan] + END)


def test_the_end_of_a_thumbnail_is_not_that_of_the_jpeg() -> None:
    thumbnail, whole = saved(RADIOGRAPH.resize((16, 24)), "JPEG"), JPEGS["grey"]
    with_one = whole[:2] + b"\xff\xe1" + struct.pack(">H", len(thumbnail) + 2) + thumbnail + whole[2:]
    assert read_picture(with_one).shape == GREY.shape
    with pytest.raises(Unusable, match="truncated"):
        read_picture(with_one[: -len(whole) // 3])


def test_a_jpeg_of_several_pictures_is_its_first() -> None:
    several = saved(RADIOGRAPH, "MPO", save_all=True, append_images=[RADIOGRAPH.resize((16, 24))])
    assert read_header(several) == (64, 96, "JPEG", "L")
    assert read_picture(several).shape == GREY.shape


@pytest.mark.parametrize(("colour", "depth"), [(0, 8), (0, 16), (2, 8), (3, 8), (4, 8), (6, 16)])
def test_a_png_with_fewer_rows_than_it_says(colour: int, depth: int) -> None:
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    values = np.repeat(GREY, channels * depth // 8, axis=1)
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    extra = (PALETTE,) if colour == 3 else ()
    assert read_picture(png(64, 96, depth, colour, *extra, data=zlib.compress(rows))).shape == GREY.shape
    for missing in (1, len(rows) // 2):
        with pytest.raises(Unusable, match=TRUNCATED):
            read_picture(png(64, 96, depth, colour, *extra, data=zlib.compress(rows[:-missing])))


def test_an_interlaced_png_has_rows_in_seven_passes() -> None:
    for width, height in ((64, 96), (5, 3), (1, 1)):
        rows = b""
        for top, down, left, across in (
            (0, 8, 0, 8), (0, 8, 4, 8), (4, 8, 0, 4), (0, 4, 2, 4), (2, 4, 0, 2), (0, 2, 1, 2), (1, 2, 0, 1),
        ):  # fmt: skip
            part = GREY[:height, :width][top::down, left::across]
            rows += b"".join(b"\0" + row.tobytes() for row in part if row.size)
        whole = png(width, height, 8, 3, PALETTE, interlaced=1, data=zlib.compress(rows))
        assert (read_picture(whole) == GREY[:height, :width]).all()
        with pytest.raises(Unusable, match=TRUNCATED):
            read_picture(png(width, height, 8, 3, PALETTE, interlaced=1, data=zlib.compress(rows[:-1])))


def pages(*pictures: Image.Image, kinds: tuple[int, ...]) -> bytes:
    """A TIFF of several pages, each with its NewSubfileType."""
    rest = []
    for picture, kind in zip(pictures[1:], kinds[1:], strict=True):
        rest.append(picture.copy())
        rest[-1].encoderinfo = {"tiffinfo": {254: kind}}
    return saved(pictures[0], "TIFF", save_all=True, append_images=rest, tiffinfo={254: kinds[0]})


def test_the_first_page_of_a_tiff_that_is_no_thumbnail_is_read() -> None:
    thumbnail = RADIOGRAPH.resize((16, 24))
    for kinds in ((1, 0), (3, 2)):
        content = pages(thumbnail, RADIOGRAPH, kinds=kinds)
        assert read_header(content) == (64, 96, "TIFF", "L")
        assert (read_picture(content) == GREY).all()
    assert (read_picture(pages(RADIOGRAPH, thumbnail, kinds=(0, 1))) == GREY).all()
    assert (read_picture(pages(RADIOGRAPH, thumbnail, kinds=(2, 2))) == GREY).all()
    assert (read_picture(pages(RADIOGRAPH, thumbnail, kinds=(1, 1))) == GREY).all(), "no page is larger"
