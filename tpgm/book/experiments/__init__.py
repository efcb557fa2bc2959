"""What the studies run, how a setting is chosen, and how rows become tables."""
