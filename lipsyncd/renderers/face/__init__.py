"""Faces in a picture, and the 468 points of each. Runs only in a render child or in the jail.

`finder` finds faces with two small networks, `chosen` picks the one that speaks, `judge` tells what is wrong with it.
Every renderer uses this package, so that all of them see the same face.
"""
