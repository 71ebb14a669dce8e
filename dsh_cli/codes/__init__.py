"""Codes: bits, sets of them, how far apart they can be and are. NumPy, SciPy, faiss; free of torch."""
