"""MuseTalk 1.5: the renderer whose mouth is painted anew by a network, frame by frame."""
