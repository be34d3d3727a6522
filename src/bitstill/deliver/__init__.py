"""From a trained model to a verified folder, and from there to wherever it runs."""
