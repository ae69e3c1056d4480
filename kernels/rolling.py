"""Texts of loops that differ in their numbers only, as of a model that is itself a loop over samples, as one loop.

To compile each of them would take too long: numba takes 10 ms for a line. The loop is slower by a fifth, and of few
elements by twice, since nothing of it stays in registers.
"""

import itertools
import re
from collections.abc import Callable, Sequence

import numpy as np

__all__ = ["alike", "integer", "rolled", "worthwhile"]

# Texts become a loop where this spares so many lines.
MOST_REPEATED = {"few": 400, "many": 200}
FEW_ELEMENTS = 8
# integers that are exact as real numbers, and real numbers
_NUMBERS = re.compile(r"\bU(\d{1,15})\b|\((-?\d[\d.e+-]*)\)")
_NAMES = re.compile(r"\bv\d+\b")


def integer(n: int) -> str:
    """The name of an unsigned constant: an index that may be negative would count from the end."""
    return f"U{n % (1 << 64)}"


def alike(texts: Sequence[str]) -> list[list[int]]:
    """Which texts differ in their numbers only, and in how their variables are called."""
    groups: dict[str, list[int]] = {}
    for k, text in enumerate(texts):
        groups.setdefault(_pattern(text), []).append(k)
    return list(groups.values())


def _pattern(text: str) -> str:
    """A text without its numbers, and with its names as they follow each other."""
    names: dict[str, str] = {}
    text = _NAMES.sub(lambda found: names.setdefault(found[0], f"v{len(names)}"), text)
    return _NUMBERS.sub(lambda found: "U" if found[1] else "()", text)


def worthwhile(text: str, n: int, n_elements: int) -> bool:
    """Whether n texts such as this one, each of which computes so many elements, become a loop."""
    most = MOST_REPEATED["few" if n_elements < FEW_ELEMENTS else "many"]
    return (n - 1) * (text.count("\n") + 1) > most


def rolled(texts: Sequence[str], new_name: Callable[[], str], stored: Callable[[np.ndarray], int]) -> list[str]:
    """The lines of a loop over texts that are alike.

    Parameters
    ----------
    texts : sequence of str
    new_name : callable
        Gives the name of another variable.
    stored : callable
        Puts an array among the constants "c" and tells where it begins.
    """
    numbers = [[of_integer or of_real for of_integer, of_real in _NUMBERS.findall(text)] for text in texts]
    names: dict[tuple[str, ...], str] = {}
    heads, table = list[str](), list[list[float]]()
    columns = iter(zip(*numbers, strict=True))

    def replaced(found: re.Match) -> str:
        column = next(columns)
        if len(set(column)) == 1:
            return found[0]
        if column not in names:
            names[column] = new_name()
            of_integer = found[1] is not None
            if of_integer and len({int(b) - int(a) for a, b in itertools.pairwise(column)}) == 1:
                step = integer(int(column[1]) - int(column[0]))
                heads.append(f"{names[column]} = {integer(int(column[0]))} + {step} * q")
            else:
                place = f"c[TABLE + {integer(len(table))}]"
                heads.append(f"{names[column]} = {f'np.uint64({place})' if of_integer else place}")
                table.append([float(n) for n in column])
        return names[column]

    body = _NUMBERS.sub(replaced, texts[0]).split("\n")
    if table:
        row = f"{integer(stored(np.array(table, dtype=np.float64).T))} + {integer(len(table))} * q"
        heads = [head.replace("TABLE", row) for head in heads]
    return [f"for q in range({integer(len(numbers))}):", *(f"    {line}" for line in [*heads, *body])]
