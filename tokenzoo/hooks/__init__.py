"""Recipes on models: the tap on the attention, the state of a pass, the splice, attach."""
