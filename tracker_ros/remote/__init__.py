"""What a person at a distance sees and commands: the page and the ground station. Knows nothing of ROS."""
