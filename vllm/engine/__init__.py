"""The loop: decide, compute, account; and the output side that turns tokens into text."""
