"""The voices that speak text: espeak-ng's, and Piper's in the folder `speech.voices`."""
