"""From layers to a native image and back: convert, unpack, and look at images as they are."""
