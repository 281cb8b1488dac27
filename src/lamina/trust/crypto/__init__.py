"""Keys, and the envelopes that are made with them."""
