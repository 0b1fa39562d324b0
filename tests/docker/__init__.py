"""Builds and runs the image where no container engine is: in chroots. See __main__.py."""
