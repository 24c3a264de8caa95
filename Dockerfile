# tracker_ros on the official ROS 2 Jazzy image, on the CPU. Not built by this project's checks.
#
#   docker build -t tracker_ros .
#   docker run --rm --network host --shm-size 256m tracker_ros simulated:=true page:=true
FROM ros:jazzy-ros-base

WORKDIR /ws
COPY . src/tracker_ros
# rviz2 stays on the operator's machine; torch comes from PyTorch's own index, which has a small one without CUDA.
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3-pip python3-aiohttp \
    && rosdep update \
    && rosdep install --from-paths src/tracker_ros src/tracker_ros/tracker_ros_interfaces --ignore-src -y \
        --skip-keys "python3-torch rviz2" \
    && pip install --break-system-packages safetensors \
    && pip install --break-system-packages --index-url https://download.pytorch.org/whl/cpu torch \
    && rm -rf /var/lib/apt/lists/*
RUN . /opt/ros/jazzy/setup.sh \
    && colcon build --base-paths src/tracker_ros src/tracker_ros/tracker_ros_interfaces
ENTRYPOINT ["/bin/bash", "-c", "source /ws/install/setup.bash && exec ros2 launch tracker_ros track.launch.py \"$@\"", "--"]
