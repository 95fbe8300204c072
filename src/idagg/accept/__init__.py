"""Requests: the fast path, the fallback app, one definition of a valid request, and group commit."""
