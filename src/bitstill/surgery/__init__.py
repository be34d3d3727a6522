"""The only places that walk a module tree to find or replace parts of it."""
