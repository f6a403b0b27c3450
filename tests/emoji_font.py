"""A small colour font built on the spot, so that no machine needs an emoji font for the tests."""

import numpy as np
from fontTools.colorLib.builder import buildCOLR, buildCPAL
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen

from tools import emoji

UNITS = 1000
WHITISH, RED, GREEN, BLUE = 16, 17, 18, 19  # places in the palette, after sixteen random colours
CANDIDATES = list(emoji.candidates())
CODE = {caption: ord(character) for character, caption, _ in CANDIDATES}
# The odd ones out of the built font; all are among the first candidates, so that a faulty choice would take them.
TWINS = ("dog face", "blue heart")
BLANK, MONOCHROME, ABSENT, SMALL = "red apple", "cat face", "green heart", "green apple"
FLAG = "grinning face"  # red above, green below on the left, blue below on the right


def rectangle(left, bottom, right, top):
    pen = TTGlyphPen(None)
    pen.moveTo((left, bottom))
    for point in ((left, top), (right, top), (right, bottom)):
        pen.lineTo(point)
    pen.closePath()
    return pen.glyph()


def build_font(path, num_glyphs=40):
    """Writes a COLR version 0 font: each candidate glyph a few random rectangles of random colours, within 0..UNITS."""
    rng = np.random.default_rng(0)
    names, layers = {}, {}
    glyphs = {".notdef": rectangle(400, 0, 600, 200)}
    palette = [(*rng.uniform(0, 1, 3), 1.0) for _ in range(16)]
    palette += [(0.88, 0.88, 0.88, 1.0), (1.0, 0.0, 0.0, 1.0), (0.0, 1.0, 0.0, 1.0), (0.0, 0.0, 1.0, 1.0)]
    for _, caption, _ in CANDIDATES[:num_glyphs]:
        if caption == ABSENT:
            continue
        name = f"glyph{CODE[caption]:x}"
        names[CODE[caption]] = name
        seed = sum(map(ord, TWINS[0] if caption in TWINS else caption))
        shapes = np.random.default_rng(seed).integers(0, UNITS, (6, 4))
        shapes = np.concatenate([[[0, 0, UNITS, UNITS]], np.sort(shapes.reshape(6, 2, 2), axis=1).reshape(6, 4)])
        colours = np.random.default_rng(seed).integers(0, 16, len(shapes))
        if caption == BLANK:
            colours[:] = WHITISH
        if caption == SMALL:
            shapes = np.array([[400, 400, 600, 600]])
        if caption == FLAG:
            shapes, colours = np.array([[0, 0, 1000, 1000], [0, 0, 500, 500], [500, 0, 1000, 500]]), (RED, GREEN, BLUE)
        glyphs[name] = rectangle(*shapes[0])
        if caption == MONOCHROME:
            continue
        layers[name] = []
        for number, (shape, colour) in enumerate(zip(shapes, colours, strict=False)):
            glyphs[f"{name}.{number}"] = rectangle(*shape)
            layers[name].append((f"{name}.{number}", int(colour)))
    font = FontBuilder(UNITS, isTTF=True)
    font.setupGlyphOrder(list(glyphs))
    font.setupCharacterMap(names)
    font.setupGlyf(glyphs)
    font.setupHorizontalMetrics({name: (UNITS, glyph.xMin) for name, glyph in glyphs.items()})
    font.setupHorizontalHeader(ascent=UNITS, descent=0)
    font.setupNameTable({"familyName": "Test Emoji", "styleName": "Regular"})
    font.setupOS2()
    font.setupPost()
    font.font["COLR"] = buildCOLR(layers, version=0)
    font.font["CPAL"] = buildCPAL([palette])
    font.save(path)
    return path
