"""A part of WNUT 2017, CC BY 4.0."""
