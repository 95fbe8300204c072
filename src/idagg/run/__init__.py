"""The processes that run accept, store, flush and deliver, and their composition."""
