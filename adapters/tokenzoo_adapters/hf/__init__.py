"""Adapters of transformers' vision towers and vision-language models."""
