"""Networks applied to images, and what they get right."""
