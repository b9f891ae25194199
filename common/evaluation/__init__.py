"""Networks applied to pictures, and what they get right."""
