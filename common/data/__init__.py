"""The way of a picture from its file to a batch."""
