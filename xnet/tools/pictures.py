"""A picture of one's own, as a network trained on a data set of digits expects it.

Ink is the high value and paper is 0, as in the data sets. Pillow is imported when it is needed.
"""

import math
import os
import warnings
from collections.abc import Generator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from xnet.errors import DatasetError, optional
from xnet.folders import FORMATS, PIXELS

__all__ = ["load_image", "load_pixels"]

Floats: TypeAlias = NDArray[np.float32]
Integers: TypeAlias = NDArray[np.int64]


def load_image(path: str | os.PathLike[str], features: int = 784) -> Floats:
    """Load a picture of one digit in the form a network trained on a data set expects.

    A file of one of `FORMATS`: a photo, a scan, a drawing; dark on light or light on dark; with
    transparency; on plain, lined or squared paper. There should be one digit in it, with some paper
    around, and nothing else.

    784 features follow MNIST (LeCun et al., 1998, section III.A): the digit's bounding box is
    scaled to fit 20×20, keeping its proportions, and placed in 28×28 with its centre of mass in
    the middle. 64 follow scikit-learn's digits (Garris et al., NISTIR 5469): scaled to the full
    height of a 32×32 bitmap, keeping its proportions up to a width of 24 (most of theirs are no
    wider), and averaged over blocks of 4×4.

    Parameters
    ----------
    path
        The file.
    features
        784 for a network trained on MNIST, 64 for one trained on the digits.

    Returns
    -------
    NDArray[float32]
        ``(features,)``, paper 0, the strongest ink 1.

    Raises
    ------
    DatasetError
        If the file cannot be read as a picture, has more than `PIXELS`, or shows no ink.
    ValueError
        If ``features`` is neither 784 nor 64.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from PIL import Image, ImageDraw
    >>> from xnet.tools import pictures
    >>> paper = Image.new("L", (100, 100), 255)
    >>> ImageDraw.Draw(paper).line((50, 20, 50, 80), fill=0, width=6)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "one.png")
    ...     paper.save(path)
    ...     x = pictures.load_image(path, features=64)
    >>> for row in x.reshape(8, 8):
    ...     print("".join(" .:#"[int(3 * ink)] for ink in row).rstrip())
       .#
       .#
       .#
       .#
       .#
       .#
       .#
       .#
    """
    if features not in (784, 64):
        raise ValueError(
            f"load_image: features is {features!r}, expected 784 (MNIST, 28×28) or 64 (digits, 8×8)"
        )
    path = Path(path)
    return centred(cropped(_find_ink(*_read_grey(path), path)), features).reshape(features)


def centred(ink: Floats, features: int) -> Floats:
    """A digit's ink, `cropped` to it, scaled and placed as `load_image` says: (28, 28) or (8, 8).

    Parameters
    ----------
    ink
        (H, W), from 0, paper, to 1, the strongest.
    features
        784 or 64.
    """
    height, width = ink.shape
    if features == 784:
        scale = 20 / max(height, width)
        square = _place(ink, round(height * scale), round(width * scale), side=28)
    else:
        square = _place(ink, 32, min(round(width * 32 / height), 24), side=32)
        square = square.reshape(8, 4, 8, 4).mean(axis=(1, 3))
    # Shrinking pales a thin stroke; the data sets' own strokes reach full strength.
    return square / square.max()


_ENOUGH = (1024, 1024)
"""Pixels that are plenty for 28×28, and in which a photo's noise averages out."""


@contextmanager
def _opened(path: Path) -> Generator[Any]:
    """Block in which a picture is open, of one of `FORMATS` and with at most `PIXELS`."""
    with optional("a picture", "Pillow"):
        from PIL import Image, UnidentifiedImageError
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, of what is refused or does not matter here
            # Closing frees the pixels, too.
            with closing(Image.open(path, formats=FORMATS)) as file:
                width, height = file.size
                if width * height > PIXELS:
                    raise ValueError(f"{width}×{height} pixels, at most {PIXELS:,} are read")
                yield file
    except UnidentifiedImageError as error:
        raise DatasetError(
            f"{path} cannot be read as a picture: it is none of {', '.join(FORMATS)}"
        ) from error
    # On a damaged file Pillow's decoders raise nearly anything, not only OSError.
    except Exception as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise DatasetError(f"{path} cannot be read as a picture: {reason!s:.200}") from error


def load_pixels(path: str | os.PathLike[str]) -> NDArray[np.uint8]:
    """Load a picture as it is, (H, W, 4): red, green, blue and opacity, 0..255.

    Parameters
    ----------
    path
        A file of one of `FORMATS`.

    Returns
    -------
    ndarray
        uint8, turned as the camera says that it was held.

    Raises
    ------
    DatasetError
        If the file cannot be read as a picture, or has more than `PIXELS`.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from PIL import Image
    >>> from xnet.tools import pictures
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "red.png")
    ...     Image.new("RGB", (3, 2), (255, 0, 0)).save(path)
    ...     pixels = pictures.load_pixels(path)
    >>> pixels.shape, pixels[0, 0].tolist()
    ((2, 3, 4), [255, 0, 0, 255])
    """
    with _opened(Path(path)) as file:
        from PIL import ImageOps

        return np.asarray(ImageOps.exif_transpose(file).convert("RGBA"))


def _read_grey(path: Path) -> tuple[Floats, Floats]:
    """Return a picture's grey levels, 0..255, and its opacity, 0..1, both ``(H, W)``."""
    with _opened(path) as file:
        from PIL import Image, ImageOps

        file.draft(None, _ENOUGH)
        deep = file.mode.startswith("I")  # 16 bits, which Pillow would clip, not scale
        image = file.convert("F" if deep else "RGBA")
        image.thumbnail(_ENOUGH)
        if deep:
            levels = (np.asarray(image) // 256).clip(0, 255)
            image = Image.fromarray(levels.astype(np.uint8)).convert("RGBA")
        image = ImageOps.exif_transpose(image).convert("LA")
    grey, opacity = np.moveaxis(np.asarray(image, dtype=np.float32), -1, 0)
    return grey, opacity / np.float32(255)


def _find_ink(grey: Floats, opacity: Floats, path: Path) -> Floats:
    """Return how much ink each pixel holds, from 0, paper, to 1, the strongest; ``(H, W)``."""
    grey = _on_paper(grey, opacity)
    ink = grey - _paper_level(grey)
    # Ink is darker or lighter than paper, whichever differs more in all; squared, so that the
    # few pixels of a stroke outweigh a faint shade over half the sheet.
    if np.sum(np.minimum(ink, 0) ** 2) > np.sum(np.maximum(ink, 0) ** 2):
        ink = -ink
    for rows in (ink, ink.T):
        _erase_rules(rows)
    grain = 3 * np.median(np.abs(_border(ink)))  # the paper's own; 0 in a clean drawing
    contrast, needed = ink.max(), max(8, 3 * grain)
    if contrast < needed:
        raise DatasetError(
            f"{path} looks blank: its strongest mark differs from the paper by {contrast:.0f} of "
            f"255 grey levels, where {needed:.0f} are needed to tell ink from paper"
        )
    return np.maximum((ink - grain) / (contrast - grain), 0)


def _erase_rules(ink: Floats) -> None:
    """Erase lines that run from the left border to the right, as ruled paper has them, in place.

    A line is straight, no thicker than two pixels or a 25th of the height, and may be tilted by a
    tenth of its length. What is drawn across it stays; where that is no darker than the line, the
    strokes above and below are joined.
    """
    width, most = ink.shape[1], max(float(ink.max()), 1)
    small, scale = _shrunk(ink / most)
    rows, columns = small.shape
    # The flattest first: of equally dark lines in a thick one, it tells how thick that is.
    drops = sorted(range(-(columns // 10), columns // 10 + 1), key=abs)
    levels = np.stack([_least_along(small, drop) for drop in drops])
    paper = float(np.median(levels))
    levels -= paper
    found: list[tuple[Integers, int, float]] = []  # where it is, half its width, its ink
    whole = False
    while (level := float(levels.max())) > 0.1:
        slope, row = np.unravel_index(levels.argmax(), levels.shape)
        thick = np.flatnonzero(levels[slope] <= level / 2)
        first = thick[thick < row].max(initial=-1) + 1
        last = thick[thick > row].min(initial=levels.shape[1]) - 1
        levels[:, max(first - 1, 0) : last + 2] = 0
        if last - first < max(2, rows // 25):
            top, bottom = first - columns // 20, last - columns // 20
            half = (bottom - top + 1) * scale / 2
            across: NDArray[np.float64] = np.linspace(-0.5, 0.5, width)
            middle = (top * scale + half) + drops[slope] * scale * across
            found.append((middle.astype(np.int64), math.ceil(half + scale / 4 + 1), level + paper))
            ends = abs(drops[slope]) / 2
            whole |= bool(ends < top and bottom < rows - 1 - ends)
    # What lies on the border alone may be a stroke of a digit that was cut out closely.
    for middle, half, level in found if whole else []:
        _bridge(ink, middle, half, (level + 0.25) * most)


def _shrunk(ink: Floats) -> tuple[Floats, int]:
    """Ink at most 256 pixels high and wide, thin lines kept; and how many times smaller."""
    scale = math.ceil(max(ink.shape) / 256)
    height, width = (math.ceil(n / scale) for n in ink.shape)
    padding = ((0, height * scale - ink.shape[0]), (0, width * scale - ink.shape[1]))
    blocks = np.pad(ink, padding, "edge").reshape(height, scale, width, scale)
    return blocks.mean(axis=3).max(axis=1), scale


def _least_along(small: Floats, drop: int) -> Floats:
    """The ink in that eighth of a line across the picture which has least of it.

    The lines begin at each row, and at some above and below the picture, and drop by so many rows.
    """
    rows, columns = small.shape
    more = columns // 20
    starts = _numbers(rows + 2 * more) - more
    fall: Integers = np.rint(drop * np.linspace(-0.5, 0.5, columns)).astype(np.int64)
    at = starts[:, np.newaxis] + fall
    inside = (at >= 0) & (at < rows)
    along = np.where(inside, small[at.clip(0, rows - 1), _numbers(columns)], 1)
    begins = _numbers(min(8, columns)) * columns // min(8, columns)
    parts = np.add.reduceat(along, begins, axis=1) / np.diff(np.append(begins, columns))
    return parts.min(axis=1) * (inside.mean(axis=1) > 0.25)


def _numbers(n: int) -> Integers:
    """0, 1, ..., n - 1."""
    return np.indices((n,))[0]


def _bridge(ink: Floats, middle: Integers, half: int, darker: float) -> None:
    """Replace a line by what is above and below it, where it is not crossed by what is darker."""
    height, width = ink.shape
    columns = _numbers(width)
    above, below = middle - half - 1, middle + half + 1
    before, after = (ink[at.clip(0, height - 1), columns] for at in (above, below))
    before = np.where(above < 0, after, before)
    after = np.where(below >= height, before, after)
    for step in range(-half, half + 1):
        rows = middle + step
        share = (step + half + 1) / (2 * half + 2)
        inside = (rows >= 0) & (rows < height)
        at = rows[inside], columns[inside]
        joined = (before + (after - before) * share)[inside]
        old = ink[at]
        ink[at] = np.where(old > darker, old, np.minimum(old, joined))


def _on_paper(grey: Floats, opacity: Floats) -> Floats:
    """Lay a picture on the paper that its transparent parts stand for."""
    opaque = _border(opacity) > 0.5
    if opaque.mean() > 0.5:  # only its corners, say, are cut out
        paper = float(np.median(_border(grey)[opaque]))
    else:
        # White, unless that hides the drawing: chalk strokes on nothing.
        dark, light = (opacity * (255 - grey)).max(), (opacity * grey).max()
        paper = 0 if 4 * dark < light else 255
    return (paper + opacity * (grey - paper)).astype(np.float32)


def _paper_level(grey: Floats) -> Floats:
    """Estimate the grey of bare paper at each pixel, ``(H, W)``: a plane through the border.

    A plane, as a photo's light falls off to one side. It is fitted to the half of the border
    nearest to its median, so that ink that touches the border does not tilt it.
    """
    plane: NDArray[Any] = np.stack([np.ones_like(grey), *np.indices(grey.shape)])  # float64
    border = _border(grey)
    distance = np.abs(border - np.median(border))
    paper = distance <= np.median(distance)
    level, *_ = np.linalg.lstsq(_border(plane)[:, paper].T, border[paper])
    return np.tensordot(level, plane, 1).astype(np.float32)


def _border(picture: Floats) -> Floats:
    """Return the outermost pixels of ``(..., H, W)`` as ``(..., M)``."""
    sides = picture[..., 0, :], picture[..., -1, :], picture[..., 1:-1, 0], picture[..., 1:-1, -1]
    return np.concatenate(sides, axis=-1)


def cropped(ink: Floats) -> Floats:
    """Cut out the bounding box of the ink."""
    marked = ink > 0.1  # above the ripples that JPEG leaves around a stroke
    rows, columns = np.flatnonzero(marked.any(axis=1)), np.flatnonzero(marked.any(axis=0))
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _place(ink: Floats, height: int, width: int, side: int) -> Floats:
    """Scale to ``(height, width)`` and place in ``(side, side)``, the centre of mass central."""
    from PIL import Image  # _read_grey found it

    height, width = max(height, 1), max(width, 1)
    # The area average gives back the very pixels of an enlarged original; enlarging with it
    # would give blocks.
    grows = height * width > ink.size
    resample = Image.Resampling.BICUBIC if grows else Image.Resampling.BOX
    scaled: Floats = np.asarray(Image.fromarray(ink).resize((width, height), resample)).clip(0, 1)
    top, left = _offset(scaled.sum(axis=1), side), _offset(scaled.sum(axis=0), side)
    square = np.zeros((side, side), np.float32)
    square[top : top + height, left : left + width] = scaled
    return square


def _offset(mass: Floats, side: int) -> int:
    """Bring the centre of mass to pixel side/2, MNIST's, unless that would cut ink off."""
    centre = np.average(np.arange(mass.size), weights=mass)
    # Whole pixels; of two equally good places, which an even bar has, the truly central one.
    offset = math.ceil(round(float((side - 1) / 2 - centre), 3))
    return min(max(offset, 0), side - mass.size)
