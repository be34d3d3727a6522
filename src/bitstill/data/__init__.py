"""Tasks and their data sets: text, images, audio, corpora, augmentation."""
