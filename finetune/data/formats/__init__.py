"""Data files of any known format -> tables of rows."""
