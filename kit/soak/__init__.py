"""The soak: what is sent and what is done to idagg meanwhile, what must come of it, and what did."""
