"""Which architectures there are, as specs over the layers."""
