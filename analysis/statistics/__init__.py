"""Pure functions of arrays: intervals, power, metrics per row. Imports nothing else of the project's."""
