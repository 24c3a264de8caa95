"""Pure functions on boxes, crops and windows."""
