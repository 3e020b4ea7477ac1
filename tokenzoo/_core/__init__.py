"""Private foundations of all other modules: checks, precision, sorting, options."""
