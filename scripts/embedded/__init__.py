"""Draws the training pictures of the embedded model, trains it, exports it and judges it."""
