"""batchfit's kernels: densities, row derivatives, and their translation to numba and XLA."""

#: Tells batchfit's packages from others of the same common names.
BATCHFIT = "0.1.0"
