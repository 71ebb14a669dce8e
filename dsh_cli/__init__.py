"""Deep supervised hashing: short binary codes for pictures.

    from dsh_cli import load, encode, hamming

    net = load("runs/mnist-8bit-...")
    codes = encode(net, ["a.png", "b.png"])
    print(codes.hex, hamming(codes.packed[0], codes.packed[1]))

The names in `__all__` are the library, and `__init__.pyi` lists them; all else may change. They are imported when first
used, so that `import dsh_cli` costs nothing.
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
