"""What the trials show: curves, verdict, warnings, and the sentences that say so."""
