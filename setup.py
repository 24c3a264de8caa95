"""Build and installation, for colcon (ament_python) and for pip."""

from pathlib import Path

from setuptools import find_packages, setup

NAME = "tracker_ros"
ROOT = Path(__file__).parent


def shared(folder: str, *patterns: str) -> tuple[str, list[str]]:
    """The files of a folder, to be installed into the package's share folder."""
    files = sorted(path for pattern in patterns for path in (ROOT / folder).glob(pattern))
    return f"share/{NAME}/{folder}", [str(path.relative_to(ROOT)) for path in files]


setup(
    name=NAME,
    version="0.1.0",
    description="Follows one object through a camera's images: eight learned trackers behind one ROS 2 node",
    license="Apache-2.0",
    maintainer="tracker_ros maintainers",
    maintainer_email="maintainers@tracker-ros.example",
    python_requires=">=3.10",
    packages=find_packages(include=[NAME, f"{NAME}.*"]),
    package_data={NAME: ["py.typed"], f"{NAME}.remote.page": ["static/*"]},
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{NAME}"]),
        (f"share/{NAME}", ["package.xml"]),
        shared("launch", "*.launch.py"),
        shared("config", "*.yaml", "*.rviz", "*.xml", "*.json"),
        shared("examples", "*.py"),
        shared("models", "*.safetensors", "*.md"),
    ],
    # torch is not among these: where it comes from (apt, pip, a vendor's build) is the user's choice, see the README.
    # Floors are those of requirements.txt, past known holes.
    install_requires=["setuptools", "numpy>=1.22", "safetensors>=0.4.3", "pyyaml>=5.4", "tqdm>=4.66.3"],
    # For `tracker_ros evaluate`: recordings as sequences, and vot-toolkit as the one who runs the trackers; for
    # `tracker_ros train`: curves and pictures.
    # `test` is what `colcon test` goes by.
    # page: for the program of that name; mavlink: for `mavlink_camera`.
    # torch, opencv: floors for those who let pip bring them.
    extras_require={
        "torch": ["torch>=2.10"],
        "opencv": ["opencv-contrib-python-headless>=4.8.1.78"],
        "bags": ["rosbags>=0.11.9"],
        "trax": ["vot-trax>=4"],
        "tensorboard": ["tensorboard>=2.10"],
        "test": ["pytest"],
        "page": ["aiohttp>=3.13.3"],
        "mavlink": ["pymavlink>=2.4.41"],
    },
    zip_safe=True,
    entry_points={
        "console_scripts": [
            "tracker_ros = tracker_ros.cli:main",
            "tracker_node = tracker_ros.ros.tracker_node:main",
            "simulated_camera = tracker_ros.ros.simulated_camera:main",
            "video_source = tracker_ros.ros.video_source:main",
            "recorder = tracker_ros.ros.recorder:main",
            "page = tracker_ros.ros.page:main",
            "mavlink_camera = tracker_ros.ros.mavlink_camera:main",
        ],
    },
)
