"""From an OpenRequest to an opened image, in four steps."""
