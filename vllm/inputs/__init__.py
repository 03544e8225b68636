"""From what the user gives to token ids."""
