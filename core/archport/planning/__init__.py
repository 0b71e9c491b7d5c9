"""Decide how a request runs, in pure Python on numbers: no arrays, no device calls."""
