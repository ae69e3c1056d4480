"""What all tests share: a setting that XLA reads when JAX starts."""

import os

# most of the time of the tests is XLA's compilation for the CPU, of which this saves a quarter; only rounding differs
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0".strip()
