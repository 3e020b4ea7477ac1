"""Reducing visual tokens between the decoder layers of a language model."""
