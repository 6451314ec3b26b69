"""Draws training images for the embedded model, trains it, exports it and judges it."""
