"""sdstream: a streaming image service over stable-diffusion.cpp."""

__version__ = "0.1.0"
