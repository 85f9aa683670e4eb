"""Many small images as one picture that a person can look at."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sfumato.errors import ConfigError
from sfumato.sampling.pixels import Images

SMALLEST_TILE = 48
GAP = 2
LETTERS = 26
"""Of a line of text beside a row of a labelled grid, at most."""
_FONT, _LINE = 12, 15


def to_pil(image_HWC: Images) -> Image.Image:
    """One uint8 image [H, W, C] with 1 (grey), 3 (RGB) or 4 (RGBA) channels.

    Raises ConfigError for any other number of channels, which has no picture.
    """
    channels = image_HWC.shape[-1]
    if channels not in (1, 3, 4):
        raise ConfigError(f"images with {channels} channels cannot be shown; 1, 3 or 4 can")
    return Image.fromarray(image_HWC[..., 0] if channels == 1 else image_HWC)


def image_grid(
    images_NHWC: Images, *, columns: int | None = None, smallest: int = SMALLEST_TILE
) -> Image.Image:
    """The images row by row on a grid, a near-square one unless `columns` is given.

    Images whose shorter side is less than `smallest` are enlarged by a whole factor, without smoothing.
    """
    num, height, width, channels = images_NHWC.shape
    if num == 0:
        raise ValueError("a grid needs at least one image")
    columns = min(num, columns or math.ceil(math.sqrt(num)))
    rows = -(-num // columns)
    scale = max(1, -(-smallest // min(height, width)))
    tiles = images_NHWC.repeat(scale, axis=1).repeat(scale, axis=2)
    step_y, step_x = height * scale + GAP, width * scale + GAP
    canvas = np.full((rows * step_y + GAP, columns * step_x + GAP, channels), 255, np.uint8)
    for index, tile in enumerate(tiles):
        top, left = GAP + index // columns * step_y, GAP + index % columns * step_x
        canvas[top : top + height * scale, left : left + width * scale] = tile
    return to_pil(canvas)


def labelled_grid(
    images_NHWC: Images, rows: Sequence[str], columns: Sequence[str], *, smallest: int = 2 * SMALLEST_TILE
) -> Image.Image:
    """The images row by row, with a text beside every row and one above every column.

    There are as many images as rows times columns. A text that is too long for its row is cut, and no space
    is left above columns without texts.
    """
    grid = image_grid(images_NHWC, columns=len(columns), smallest=smallest).convert("RGB")
    height, width = (grid.height - GAP) // len(rows), (grid.width - GAP) // len(columns)
    font = ImageFont.load_default(_FONT)
    beside = [_lines(row, height // _LINE) for row in rows]
    above = [_lines(column, 1, max(1, width * LETTERS // 180)) for column in columns]
    left = max(int(font.getlength(line)) for lines in beside for line in lines) + 4 * GAP
    top = _LINE + 2 * GAP if any(columns) else 0
    picture = Image.new("RGB", (left + grid.width, top + grid.height), "white")
    picture.paste(grid, (left, top))
    draw = ImageDraw.Draw(picture)
    for number, lines in enumerate(beside):
        middle = top + GAP + number * height + height / 2
        draw.multiline_text((left - 2 * GAP, middle), "\n".join(lines), "black", font, "rm", align="right")
    for number, (line,) in enumerate(above):
        draw.text((left + GAP + number * width + width / 2, GAP + _LINE / 2), line, "black", font, "mm")
    return picture


def prompt_grid(images_NHWC: Images, prompts: Sequence[str]) -> Image.Image:
    """A row for every prompt, beside its images. Image i has the prompt i mod P; empty places are white."""
    rows = prompts[: len(images_NHWC)]
    columns = -(-len(images_NHWC) // len(prompts))
    tiles = np.full((len(rows) * columns, *images_NHWC.shape[1:]), 255, np.uint8)
    for index, image_HWC in enumerate(images_NHWC):
        tiles[index % len(prompts) * columns + index // len(prompts)] = image_HWC
    return labelled_grid(tiles, rows, [""] * columns)


def _lines(text: str, most: int, letters: int = LETTERS) -> list[str]:
    """The text on at most so many lines."""
    plain = "".join(letter if letter.isprintable() else " " for letter in text)
    return textwrap.wrap(plain, letters, max_lines=max(1, most), placeholder=" ...") or [""]
