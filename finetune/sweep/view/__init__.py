"""What a sweep looks like while it runs and afterwards."""
