"""Adapters of timm's vision transformers."""
