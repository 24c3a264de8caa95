"""A flight that the package renders itself, with exact truth. Pure numpy and OpenCV: no ROS, no torch."""

from tracker_ros.simulation.flight import Episode, Flight, FlightOptions, Truth

__all__ = ["Episode", "Flight", "FlightOptions", "Truth"]
