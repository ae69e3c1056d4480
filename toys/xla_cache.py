"""The cache of XLA on disk."""

import jax

from kernels.translate import cache_directory

__all__ = ["use_compilation_cache"]


def use_compilation_cache() -> None:
    """Keep what XLA compiles on disk, as the numba kernels are; for programs, which own JAX's settings."""
    jax.config.update("jax_compilation_cache_dir", str(cache_directory() / "jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
