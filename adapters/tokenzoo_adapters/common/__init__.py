"""What adapters of several libraries share."""
