"""Pairwise judges: who gave the better answer."""
