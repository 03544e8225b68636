"""Families of architectures by kinship: each a function from a config to a spec."""
