"""What a network computes, as a short program planned from config.json. No torch."""
