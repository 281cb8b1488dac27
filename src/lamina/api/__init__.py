"""What :func:`lamina.open` gives to programs: an image, and paths in it, as os and pathlib do."""
