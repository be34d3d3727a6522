"""Hugging Face transformers as teachers, students and readers of artifacts. The only folder that imports transformers."""
