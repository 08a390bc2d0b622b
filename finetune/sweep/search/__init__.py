"""The study: which trial is next, where that is stored, which are stopped early, which are confirmed."""
