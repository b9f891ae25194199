"""Plots and tables: dicts and arrays in, files out."""
