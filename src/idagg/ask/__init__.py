"""Commands that ask a running idagg: its admin listener answers them."""
