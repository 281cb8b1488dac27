"""How programs see an image: kernel mounts, FUSE, containers, and the servers behind them."""
