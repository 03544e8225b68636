"""A door: clients import names from here."""
