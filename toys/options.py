"""How a study is run, and which toys of it."""

from dataclasses import dataclass

__all__ = ["Options", "shard_range", "validated"]


def validated(n_params: int) -> int:
    """How many toys MIGRAD refits where nothing else is asked for: its time grows with the square of the parameters."""
    return min(100, max(2000 // max(n_params, 1), 5))


@dataclass(frozen=True)
class Options:
    """How a study is run.

    Attributes
    ----------
    n_toys : int
    seed : int
    device, optimizer : str
        As for `fit_batch`.
    backend : {"auto", "numba", "jax"}
        Draws and fits the toys.
    validate : int
        How many toys MIGRAD refits.
    minos : bool
        Find the MINOS intervals of every toy.
    overwrite, resume, extend : bool
        What to do with an output that is there.
    save_toys : bool
        False keeps the checksums of the toys alone, which `toys.regenerate` throws again.
    chunk : int, optional
        Toys that are thrown, fitted and written together; by default what fills 32 MiB.
    shard : (i, n), optional
        Do only the toys of shard i of n, 1 <= i <= n.
    source : str
        Source text of the model, for the file.
    command_line : str
    """

    n_toys: int
    seed: int = 1
    device: str = "auto"
    backend: str = "auto"
    optimizer: str = "newton"
    validate: int = 100
    minos: bool = False
    overwrite: bool = False
    resume: bool = False
    extend: bool = False
    save_toys: bool = True
    chunk: int | None = None
    shard: tuple[int, int] | None = None
    source: str = ""
    command_line: str = ""

    def __post_init__(self) -> None:
        if not 1 <= self.n_toys <= 2**32:
            raise ValueError(f"the number of toys must lie in 1 to 2^32, got {self.n_toys}")
        if self.chunk is not None and self.chunk < 1:
            raise ValueError(f"a chunk must hold at least one toy, got {self.chunk}")
        if self.shard is not None and not 1 <= self.shard[0] <= self.shard[1]:
            raise ValueError(f"a shard is i of n with 1 <= i <= n, got {self.shard[0]} of {self.shard[1]}")
        if self.shard is not None and self.extend:
            raise ValueError("a shard is not extended: merge the shards, and extend the file of all toys")


def shard_range(n_toys: int, chunk: int, i: int, n: int) -> tuple[int, int]:
    """The toys of shard i of n, as (first, stop): whole chunks, and as many in each shard as can be.

    Raises
    ------
    ValueError
        If there are fewer chunks than shards.
    """
    n_chunks = -(-n_toys // chunk)
    if n > n_chunks:
        raise ValueError(
            f"{n_toys} toys are {n_chunks} chunks of {chunk}: ask for at most {n_chunks} shards, not {n}, or pass a "
            "smaller --chunk"
        )
    first, stop = ((k * n_chunks // n) * chunk for k in (i - 1, i))
    return first, min(stop, n_toys)
