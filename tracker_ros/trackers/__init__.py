"""The trackers: what happens each frame, one file a system."""
