"""Modules with weights: what a model is made of.  They know no model's name and allocate no cache."""
