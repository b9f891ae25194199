"""What two or more of the scripts use, one idea per file."""
