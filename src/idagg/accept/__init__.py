"""Where a hit comes in: two doors, one idea of a valid request, and group commit."""
