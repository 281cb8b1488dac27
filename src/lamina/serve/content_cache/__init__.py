"""Layers as files that a stock containerd mounts instead of pulling: its layer content cache."""
