"""Images as block devices: one disk an image, and the hash trees that a kernel checks one by."""
