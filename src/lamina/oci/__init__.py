"""Documents of images as values: references, manifests, platforms. No I/O."""
