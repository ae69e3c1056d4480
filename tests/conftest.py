"""What all tests share: settings with which compilers take less time."""

import gc
import os
from importlib.metadata import version

# most of the time of the tests is XLA's compilation for the CPU, of which these save two thirds; only rounding differs
flags = ["--xla_backend_optimization_level=0"]
if version("jaxlib").startswith(("0.9.", "0.10.")):  # later ones do not know it, and end at what they do not know
    flags += ["--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1"]
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *flags]).strip()
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")  # what is compiled need not say where it was traced

gc.set_threshold(50_000)  # as in scripts/arguments.py
