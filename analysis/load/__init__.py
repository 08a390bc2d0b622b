"""Records and predictions -> trials, grouped and chosen on validation."""
