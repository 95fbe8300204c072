"""Where hits come in: the fast path, the fallback app, one idea of a valid request, and group commit."""
