"""Patches that engine/runtime.py applies to the runtime's sources before it compiles them."""
