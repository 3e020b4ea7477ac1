"""Measurements and generated pages.

A package, since pyarrow 17 installs one of this name, which would be found first.
"""
