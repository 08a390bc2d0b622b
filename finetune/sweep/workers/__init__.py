"""Warm processes that train."""
