"""What a teacher says and how a student is measured against it."""
