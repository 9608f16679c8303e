"""The numbers of the mesh's points: which of the 468 lie on lips, eyes, brows and outline.

Left and right are the person's own. Contours run from the person's right to the left, so from left to right in an
upright picture. Source: the canonical face mesh of MediaPipe (Kartynnik et al., arXiv:1907.06724).
"""

from __future__ import annotations

POINTS = 468

OUTER_UPPER_LIP = (61, 185, 40, 39, 37, 0, 267, 269, 270, 409, 291)
OUTER_LOWER_LIP = (61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291)
INNER_UPPER_LIP = (78, 191, 80, 81, 82, 13, 312, 311, 310, 415, 308)
INNER_LOWER_LIP = (78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308)

RIGHT_EYE_CORNERS, LEFT_EYE_CORNERS = (33, 133), (263, 362)  # outer, inner
RIGHT_UPPER_LID = (33, 246, 161, 160, 159, 158, 157, 173, 133)
RIGHT_LOWER_LID = (33, 7, 163, 144, 145, 153, 154, 155, 133)
LEFT_UPPER_LID = (362, 398, 384, 385, 386, 387, 388, 466, 263)
LEFT_LOWER_LID = (362, 382, 381, 380, 374, 373, 390, 249, 263)

RIGHT_BROW = (70, 63, 105, 66, 107)
LEFT_BROW = (336, 296, 334, 293, 300)

FOREHEAD, NOSE_BRIDGE, NOSE_TIP, NOSE_BASE, CHIN = 10, 168, 1, 2, 152
RIGHT_JAW, LEFT_JAW = 172, 397

# The outline of the face, clockwise in the picture from the middle of the forehead.
OVAL = (
    *(10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377),
    *(152, 148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109),
)

# Pairs of points that mirror each other, the person's right one first: how a head is turned follows from them.
MIRRORED = ((33, 263), (133, 362), (234, 454), (172, 397), (61, 291), (127, 356), (58, 288), (70, 300))
