"""The processes that hold the four rooms, and the composition root."""
