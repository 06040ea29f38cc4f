"""The published curves beside ours."""
