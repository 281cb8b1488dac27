"""A key broker: the server that hands keys to guests that proved what they run."""
