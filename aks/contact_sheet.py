"""Contact sheets: the keyframes of some questions in one picture, with their times and scores."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from aks.errors import UserError
from aks.jsonio import write_atomically

WIDTH, GAP, CAPTION_HEIGHT, LINE_HEIGHT = 240, 6, 20, 22  # pixels; the first is a picture's
MAX_COLUMNS = 8
MAX_SIDE = {".jpg": 65_500, ".jpeg": 65_500, ".png": 500_000}  # of a picture of this format, in pixels


def thumbnail(image: Image.Image) -> Image.Image:
    """A copy of a picture as wide as on the sheet."""
    height = max(1, round(image.height * WIDTH / image.width))
    return image.resize((WIDTH, height), Image.Resampling.BICUBIC)


def contact_sheet(blocks: Sequence[tuple[str, Sequence[Image.Image], Sequence[str]]], path: Path) -> None:
    """Save blocks of captioned pictures as one picture, eight pictures a row.

    Args:
        blocks: a title, pictures in RGB, and a caption for each picture; ``\\n`` breaks a caption's lines.
        path: the new file: ``.jpg``, ``.jpeg`` or ``.png``.

    Raises:
        UserError: the file cannot be written, or the format does not hold so large a picture.
    """
    font, title_font = ImageFont.load_default(size=14), ImageFont.load_default(size=16)
    columns = min(MAX_COLUMNS, max((len(pictures) for _, pictures, _ in blocks), default=1)) or 1
    sheet_width = columns * (WIDTH + GAP) + GAP
    letters = int((sheet_width - 2 * GAP) / title_font.getlength("n"))
    # What is drawn, and how high it is, before there is a sheet to draw on.
    texts: list[tuple[int, int, str, ImageFont.ImageFont]] = []
    pasted: list[tuple[int, int, Image.Image]] = []
    top = GAP
    for title, pictures, captions in blocks:
        for line in textwrap.wrap(title, letters) or [""]:
            texts.append((GAP, top, line, title_font))
            top += LINE_HEIGHT
        small = [thumbnail(picture) for picture in pictures]
        for start in range(0, len(small), columns):
            row, below = small[start : start + columns], captions[start : start + columns]
            height = max(picture.height for picture in row)
            for column, (picture, caption) in enumerate(zip(row, below, strict=True)):
                left = GAP + column * (WIDTH + GAP)
                pasted.append((left, top, picture))
                for number, line in enumerate(caption.split("\n")):
                    texts.append((left + 2, top + height + 2 + number * CAPTION_HEIGHT, line, font))
            lines = max(caption.count("\n") + 1 for caption in below)
            top += height + lines * CAPTION_HEIGHT + GAP
    limit = MAX_SIDE[path.suffix.lower()]
    if max(top, sheet_width) > limit:
        raise UserError(
            f"{path}: the sheet is {sheet_width} x {top} pixels, and {path.suffix} files have at most "
            f"{limit} a side; ask for fewer keyframes or questions"
        )
    sheet = Image.new("RGB", (sheet_width, top), "white")
    for left, above, picture in pasted:
        sheet.paste(picture, (left, above))
    draw = ImageDraw.Draw(sheet)
    for left, above, line, line_font in texts:
        draw.text((left, above), line, fill="black", font=line_font)
    write_atomically(path, sheet.save)
