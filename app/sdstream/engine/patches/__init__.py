"""Changes to the runtime's sources, applied before scripts/install compiles it; see README.md."""
