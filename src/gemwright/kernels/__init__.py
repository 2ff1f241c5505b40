"""Kernels beyond XLA's own, and the weights that they compute on."""
