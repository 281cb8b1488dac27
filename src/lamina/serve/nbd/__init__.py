"""An image as a disk over NBD."""
