"""The way of an image from its file to a batch."""
