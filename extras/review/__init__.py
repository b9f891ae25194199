"""Look at what may be wrong, correct it with one key, and let makedata.py follow the corrections."""
