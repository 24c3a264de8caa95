"""The page to draw a box on: live picture, targets, buttons. Knows nothing of ROS."""
