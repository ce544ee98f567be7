"""Codes of product quantization: what they decode to, how they are packed, stored and searched."""
