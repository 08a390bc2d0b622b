"""How often our intervals and verdicts are right, where the truth is known: `python -m analysis.simulate`."""
