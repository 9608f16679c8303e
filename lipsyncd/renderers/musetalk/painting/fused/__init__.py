"""UNet and decoder with less work: the same functions as diffusers' modules, but for rounding.

`decoder` and `unet` rebuild a forward pass out of the layers of a loaded network, whose weights they share; `gate`
decides whether their results may be used.
"""
