"""The ROS 2 side of the package: the only place that imports rclpy or knows a message layout."""
