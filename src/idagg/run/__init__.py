"""The processes that run accept, store, flush and deliver, and what puts them together."""
