"""Codes as they are stored: bits without gaps, and how many of them are needed."""
