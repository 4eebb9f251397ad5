"""Numbers of a chapter: printed, and kept in the range of which its text speaks."""

from __future__ import annotations

from diffusers import StableDiffusionPipeline

from sdlearn.postcards.model import is_postcards


def measured(
    label: str,
    value: float,
    low: float,
    high: float,
    *,
    digits: int = 2,
    pipe: StableDiffusionPipeline | None = None,
) -> None:
    """Print "label ≈ value". The text beside it holds from ``low`` to ``high``.

    What stands behind ≈ may differ in its last digits from one computer to the next.

    Args:
        label: what was measured.
        value: the number.
        low: the least that the text allows.
        high: the most.
        digits: so many after the point.
        pipe: what it was measured of, if it was a model: the text speaks of postcards, so that
            the number of another model is printed only.

    Raises:
        AssertionError: the value is outside.
    """
    print(f"{label} ≈ {float(value):.{digits}f}")
    if pipe is None or is_postcards(pipe):
        assert low <= value <= high, f"{label}: {value} is not within {low} to {high}"
