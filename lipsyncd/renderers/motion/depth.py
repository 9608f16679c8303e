"""How far each part of a head lies in front of the axis about which it turns.

Inside the face the mesh says it. Hair, ears and neck have no mesh: there the depth falls smoothly to that of the axis,
on a ring around the head and everywhere beyond it, so a turn moves neither the outline of the head nor the background.
Depths are interpolated by simple kriging: exponential covariance, mean 0.
"""

from __future__ import annotations

from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray

from lipsyncd.renderers.face.networks import Mesh
from lipsyncd.renderers.motion.head_pose import HeadPose

REACH = 1.0  # sizes of the head after which the covariance has fallen to 1 / e
NUGGET = 0.02  # share of the variance that is not trusted: smooths where parts of a turned face lie on each other
RING_POINTS, RING, RING_V = 40, (0.86, 0.95), -0.10  # half axes and centre of the ring around the head, in sizes
SOFT = 0.035  # sizes of the head by which the map is blurred
CELLS = 40  # a size of the head, in which the depth is interpolated


def depth_map(mesh: Mesh, pose: HeadPose, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float32]:
    """The depth in front of the axis at a rectangular grid of pixels, in pixels.

    x, y     (columns,) and (rows,) of the grid
    returns  (rows, columns) float32; 0 on the ring around the head and beyond
    """
    where, depth = _known(mesh, pose)
    weights = _solved(np.exp(-_distances(where, where) / REACH) + NUGGET * np.eye(len(where)), depth)
    step = max(pose.size_px / CELLS / abs(x[1] - x[0]), 1.0)
    columns, rows = max(int(len(x) / step), 2), max(int(len(y) / step), 2)
    coarse_x, coarse_y = _middles(x, columns), _middles(y, rows)
    u, v = pose.own(coarse_x[None, :], coarse_y[:, None])
    cells = np.column_stack((u.ravel(), v.ravel())).astype(np.float32)
    found = np.zeros(len(cells), np.float32)
    for point, weight in zip(where.astype(np.float32), weights.astype(np.float32), strict=True):
        found += weight * np.exp(np.hypot(*(cells - point).T) * np.float32(-1 / REACH))
    inside = np.hypot(u / RING[0], (v - RING_V) / RING[1]) < 1
    coarse = np.where(inside, found.reshape(rows, columns), 0).clip(depth.min(), depth.max()) * pose.size_px
    fine = cv2.resize(coarse.astype(np.float32), (len(x), len(y)), interpolation=cv2.INTER_CUBIC)
    soft = SOFT * pose.size_px / abs(x[1] - x[0])
    return cast(NDArray[np.float32], cv2.GaussianBlur(fine, (0, 0), max(soft, 0.5)))


def _known(mesh: Mesh, pose: HeadPose) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Places (n, 2) in the head's own u and v, and their depths (n,), both in sizes of the head."""
    points = mesh[::2].astype(np.float64)
    around = np.arange(RING_POINTS) * (2 * np.pi / RING_POINTS)
    ring = np.column_stack((RING[0] * np.cos(around), RING_V + RING[1] * np.sin(around)))
    face = np.column_stack(pose.own(points[:, 0], points[:, 1]))
    depth = (pose.axis_z - points[:, 2]) / pose.size_px
    return np.vstack((face, ring)), np.concatenate((depth, np.zeros(RING_POINTS)))


def _distances(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.hypot(a[:, None, 0] - b[None, :, 0], a[:, None, 1] - b[None, :, 1])


def _solved(matrix: NDArray[np.float64], right: NDArray[np.float64]) -> NDArray[np.float64]:
    """The solution of a positive definite system. BLAS would round differently with another number of threads."""
    table = np.column_stack((matrix, right))
    for i in range(len(right)):
        table[i] /= table[i, i]
        below = table[:, i].copy()
        below[i] = 0.0
        table[:, i:] -= below[:, None] * table[i, i:]
    return table[:, -1]


def _middles(nodes: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """The middles of `count` equal cells that cover the same length as the cells around `nodes`."""
    step = nodes[1] - nodes[0]
    return cast(NDArray[np.float64], nodes[0] - step / 2 + (np.arange(count) + 0.5) * (len(nodes) * step / count))
