"""Changes to the runtime's sources, applied before engine/runtime.py compiles it; see README.md."""
