"""What every other module builds on: checks, precision, order, options. Private."""
