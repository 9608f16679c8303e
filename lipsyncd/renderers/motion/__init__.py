"""The moving head of a still: laid over the finished frames of any renderer by one displacement field a frame.

A renderer draws the mouth on a canvas on which nothing else moves, and hands each frame to `still.StillMotion`, which
closes the lids, turns the head, and leaves the background as it is. Knows no renderer.
"""
