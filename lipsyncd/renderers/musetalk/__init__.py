"""MuseTalk 1.5: the renderer whose mouth is painted anew by a network, frame by frame.

    picture ──► detector ──► landmarks ──► faces      which face, and its box
                                            │
                             parsing ──► masks        which of its pixels are painted
                                            │
    voice ──► silence ──► features ──► networks ──► pipeline ──► blend ──► shot      the frames

`renderer` puts these together. Torch, diffusers, transformers, onnxruntime and safetensors are imported below here and
nowhere else; they come with the extra `musetalk`.
"""
