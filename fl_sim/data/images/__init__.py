"""Image folders: which files are read, and how an image file becomes eight-bit pixels."""
