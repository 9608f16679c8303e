"""MuseTalk 1.5: a renderer that repaints the mouth with neural networks, frame by frame.

    picture ──► renderers.face ──► face/landmarks ──► face/find_face       which face, and its box
                                                          │
                                 painting/parsing ──► painting/masks       which of its pixels are painted
                                                          │
    voice ──► silence ──► audio_features ──► painting/pipeline ──► painting/blend ──► still_shot, video_shot

`renderer` puts these together. Torch, diffusers, transformers, onnxruntime and safetensors are imported in this package
only; they come with the extra `musetalk`.
"""
