"""Contact sheets: rows of pictures with their captions, in one picture."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from aks import UserError
from aks.contact_sheet import contact_sheet, thumbnail


def test_more_pictures_than_a_row_holds_go_on_below_with_their_captions(tmp_path):
    colours = [(index * 25, 255 - index * 25, 128) for index in range(10)]
    pictures = [Image.new("RGB", (480, 270), colour) for colour in colours]
    blocks = [("first", pictures, [f"{index}" for index in range(10)]), ("second", pictures[:1], ["a\nb"])]
    contact_sheet(blocks, tmp_path / "sheet.png")
    pixels = np.asarray(Image.open(tmp_path / "sheet.png"))
    row = 135 + 20 + 6  # thumbnail, caption and gap
    assert pixels.shape == (6 + 22 + 2 * row + 22 + row + 20, 8 * 246 + 6, 3)
    for index, colour in enumerate(colours):
        left, top = 6 + index % 8 * 246, 6 + 22 + index // 8 * row
        assert (pixels[top : top + 135, left : left + 240] == colour).all()
        assert (pixels[top + 135 : top + 155, left : left + 240] < 128).any()  # its caption
    assert (pixels[6 + 22 + row :, 6 + 2 * 246 :] == 255).all()  # nothing beside the last two
    assert (pixels[-46:-26, :240] < 128).any() and (pixels[-26:-6, :240] < 128).any()


def test_a_long_question_takes_several_lines(tmp_path):
    contact_sheet([("word " * 60, [Image.new("RGB", (240, 10))], [""])], tmp_path / "sheet.jpg")
    assert Image.open(tmp_path / "sheet.jpg").size == (252, 6 + 12 * 22 + 36)


def test_a_sheet_too_large_for_its_format_is_refused(tmp_path):
    tall = thumbnail(Image.new("RGB", (4, 600)))
    assert tall.size == (240, 36_000)
    blocks = [("", [tall], [""])] * 2
    with pytest.raises(UserError, match=r"sheet\.jpg: the sheet is 252 x 72102 pixels, and \.jpg files"):
        contact_sheet(blocks, tmp_path / "sheet.jpg")
    assert not list(tmp_path.iterdir())
