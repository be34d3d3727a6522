"""From an artifact to what other runtimes read. Nothing here imports training code, or torch."""
