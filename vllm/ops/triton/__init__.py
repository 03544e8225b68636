"""Kernels for GPUs, written in Triton, one file each; what they compute is said by the plain-torch version of the same name."""
