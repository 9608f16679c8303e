"""Long videos that several slots of one daemon draw: in memory alone, so that the ledger stays the only queue.

shared_video  the ranges of one attempt's video, and the place where idle workers find them
drawing       whether a video is drawn in parts, and how the claimer and its helpers draw them
join          one MP4 of the parts and the whole sound
"""
