"""What an exercise is, and how an answer to it is examined.

An answer is tried on random cases beside a reference. If it is wrong, it is compared with the
mistakes that people make: the one which gives the same results names the reason.
"""

from __future__ import annotations

import copy
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pydoc import locate
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

Cases = Callable[[torch.Generator], Sequence[tuple]]


class NotYet(AssertionError):
    """What is wrong with an answer, in words. A notebook shows the words alone."""

    def _render_traceback_(self) -> list[str]:
        return textwrap.wrap(f"Not yet: {self}", 76)


class OutOfReach(Exception):
    """An answer calls what it should do by itself."""


@dataclass(frozen=True)
class Mistake:
    """A plausible wrong answer, and the words for whoever gives it."""

    words: str
    answer: Callable[..., Any]


@dataclass(frozen=True)
class Exercise:
    """One exercise.

    Attributes:
        name: its chapter and number, such as "05.1".
        title: what it is about, in a few words.
        minutes: how long a reader needs.
        difficulty: 1 warm-up, 2 needs the idea of the chapter, 3 a challenge.
        reference: the right answer; where there is one, diffusers or PyTorch, not our own.
        cases: draws argument tuples, of different shapes and values.
        start: where to begin; said of an empty answer.
        mistakes: known wrong answers.
        out_of_reach: dotted names of functions that do the whole work, such as
            "sdlearn.noise.add_noise"; an answer that calls one is told so.
        tolerance: how far numbers may be off, relative to 1 or to their size.
        points: in a class.
    """

    name: str
    title: str
    minutes: int
    difficulty: int
    reference: Callable[..., Any]
    cases: Cases
    start: str
    mistakes: tuple[Mistake, ...]
    out_of_reach: tuple[str, ...] = ()
    tolerance: float = 1e-4
    points: int = 1

    def examine(self, answer: Callable[..., Any], seed: int = 0) -> None:
        """Try an answer on cases drawn with a seed.

        Raises:
            NotYet: it is wrong; the message says why.
        """
        if not callable(answer):
            raise NotYet(f"pass the function itself, without calling it; got {answer!r}")
        cases = list(self.cases(torch.Generator().manual_seed(seed)))
        results = []
        for number, case in enumerate(cases, 1):
            results.append(self._result(answer, case, number))
        if any(result is None for result in results):
            raise NotYet("your function returns nothing; end it with `return ...`")
        wanted = [self.reference(*copy.deepcopy(case)) for case in cases]
        if alike(results, wanted, self.tolerance):
            return
        for mistake in self.mistakes:
            if alike(results, _results(mistake.answer, cases), self.tolerance):
                raise NotYet(mistake.words)
        pairs = enumerate(zip(cases, results, wanted), 1)
        bad = [(i, *each) for i, each in pairs if not alike(each[1], each[2], self.tolerance)]
        number, case, result, want = bad[0]
        right = (
            f"{len(cases) - len(bad)} of {len(cases)} cases are right. "
            if len(bad) < len(cases)
            else ""
        )
        raise NotYet(f"{right}Case {number}, {shown(case)}: {difference(result, want)}")

    def _result(self, answer: Callable[..., Any], case: tuple, number: int) -> Any:
        given = copy.deepcopy(case)
        try:
            with out_of_reach(self.out_of_reach, answer):
                result = answer(*given)
        except NotImplementedError:
            raise NotYet(f"nothing is written yet. Begin here: {self.start}") from None
        except OutOfReach as error:
            raise NotYet(
                f"your answer calls {error}, which does the whole work; write it yourself"
            ) from None
        except Exception as error:
            kind = type(error).__name__
            raise NotYet(f"case {number}, {shown(case)}, ends in {kind}: {error}") from error
        if not alike(given, case, 0):
            raise NotYet(
                "your function changes what it is given: an operation in place (`+=`, `.add_()`, "
                "`x[...] = `) writes into the caller's tensor; make a new one"
            )
        return result


@contextmanager
def out_of_reach(names: Sequence[str], answer: Callable[..., Any]) -> Iterator[None]:
    """Let the functions of these names raise ``OutOfReach`` in the block, wherever they are."""
    spaces = getattr(answer, "__globals__", {})
    with ExitStack() as stack:
        for name in names:
            function = locate(name)

            def refuse(*args: Any, called: str = name, **kwargs: Any) -> None:
                raise OutOfReach(called)

            stack.enter_context(patch(name, refuse))
            # `from sdlearn import add_noise` in the notebook is a name of its own.
            known = {key: refuse for key, value in spaces.items() if value is function}
            stack.enter_context(patch.dict(spaces, known))
        yield


def _results(answer: Callable[..., Any], cases: Sequence[tuple]) -> list[Any] | None:
    """Return what a wrong answer gives for all cases; None if it cannot take them."""
    try:
        return [answer(*copy.deepcopy(case)) for case in cases]
    except Exception:
        return None


def per_picture(numbers: Tensor, pictures: Tensor) -> Tensor:
    """Give one number for each picture, (B,), the axes with which it multiplies them."""
    return numbers.reshape(-1, *[1] * (pictures.ndim - 1))


def alike(one: Any, other: Any, tolerance: float) -> bool:
    """Whether two results are equal, numbers within a tolerance, tensors in shape, too."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and torch.allclose(
            one.double(), other.double(), rtol=tolerance, atol=tolerance, equal_nan=True
        )
    if isinstance(one, (tuple, list)) and isinstance(other, (tuple, list)):
        return len(one) == len(other) and all(alike(a, b, tolerance) for a, b in zip(one, other))
    numbers = (int, float, Tensor)
    if isinstance(one, numbers) and isinstance(other, numbers):
        if isinstance(one, Tensor) and one.numel() != 1:
            return False
        if isinstance(other, Tensor) and other.numel() != 1:
            return False
        return abs(float(one) - float(other)) <= tolerance * max(1.0, abs(float(other)))
    return type(one) is type(other) and bool(one == other)


def shown(value: Any) -> str:
    """Describe arguments or a result in a few words: tensors by their shape."""
    if isinstance(value, tuple):
        return "(" + ", ".join(shown(each) for each in value) + ")"
    if isinstance(value, Tensor) and value.ndim:
        return "tensor of " + " × ".join(str(side) for side in value.shape)
    if isinstance(value, (float, Tensor)):
        return f"{float(value):.4g}"
    if callable(value):
        return getattr(value, "__name__", type(value).__name__)
    return repr(value) if len(repr(value)) < 60 else type(value).__name__


def difference(result: Any, wanted: Any) -> str:
    """Say in words how a result differs from the right one."""
    if isinstance(wanted, Tensor) and wanted.ndim:
        if not isinstance(result, Tensor):
            return f"you return {shown(result)}, a {shown(wanted)} is wanted"
        if result.shape != wanted.shape:
            return f"you return a {shown(result)}, a {shown(wanted)} is wanted"
        result, wanted = result.double(), wanted.double()
        if not result.isfinite().all():
            return "your result holds NaN or infinity"
        ratio = float((result * wanted).sum() / (wanted * wanted).sum().clamp(min=1e-12))
        if alike(result, ratio * wanted, 1e-3) and abs(ratio) > 1e-6:
            return (
                "the sign is wrong"
                if abs(ratio + 1) < 1e-3
                else f"it has {ratio:.2g} times the right size"
            )
        size = float(wanted.abs().mean())
        off = float((result - wanted).abs().mean())
        return f"off by {off:.3g} in the mean, where the right values have a size of {size:.3g}"
    if isinstance(wanted, (list, tuple)) and isinstance(result, (list, tuple)):
        if len(result) != len(wanted):
            return f"you return {len(result)} of them, {len(wanted)} are right"
        at = next(i for i, each in enumerate(zip(result, wanted)) if not alike(*each, 1e-4))
        return f"at place {at} {difference(result[at], wanted[at])}"
    return f"you return {shown(result)}, {shown(wanted)} is right"
