"""Questions about single images: generated or real, trained on or not, good enough to train on."""
