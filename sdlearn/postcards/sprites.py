"""Make the sprite sheet from the font: ``python -m sdlearn.postcards.sprites NotoColorEmoji.ttf``.

Run once; the sheet it writes is part of the package.
"""

from __future__ import annotations

import sys

from PIL import Image, ImageDraw, ImageFont

from sdlearn.postcards.render import COLUMNS, SHEET, SPRITE
from sdlearn.postcards.world import SUBJECTS


def make_sheet(font_file: str) -> Image.Image:
    """Return every subject's emoji, cropped and fitted into its cell, as one RGBA picture."""
    font = ImageFont.truetype(font_file, 109)  # The one size that the font's bitmaps have.
    rows = -(-len(SUBJECTS) // COLUMNS)
    sheet = Image.new("RGBA", (COLUMNS * SPRITE, rows * SPRITE))
    for i, emoji in enumerate(SUBJECTS.values()):
        glyph = Image.new("RGBA", (160, 160))
        ImageDraw.Draw(glyph).text((10, 10), emoji, font=font, embedded_color=True)
        glyph = glyph.crop(glyph.getbbox())
        glyph.thumbnail((SPRITE, SPRITE), Image.Resampling.LANCZOS)
        x, y = i % COLUMNS * SPRITE, i // COLUMNS * SPRITE
        corner = (x + (SPRITE - glyph.width) // 2, y + (SPRITE - glyph.height) // 2)
        sheet.paste(glyph, corner)
    return sheet


if __name__ == "__main__":
    make_sheet(sys.argv[1]).save(SHEET, optimize=True)
