"""A ground station as a process of its own: does what comes as lines of JSON, and prints what it hears.

``python ground_station.py udpin:127.0.0.1:PORT``; a line is ``{"long": [system, component, command, param1, …]}``,
``{"hex": "bytes to send as they are"}`` or ``{"v1": true}`` (a heartbeat of MAVLink 1).
"""

from __future__ import annotations

import json
import os
import select
import sys
import time

os.environ["MAVLINK20"] = "1"

from pymavlink import mavutil
from pymavlink.dialects.v10 import common as old
from pymavlink.dialects.v20 import common as mavlink


def main() -> None:
    """Talk until standard input ends."""
    link = mavutil.mavlink_connection(sys.argv[1], source_system=255, source_component=190, dialect="common")
    print(json.dumps({"ready": link.port.getsockname()[1] if hasattr(link.port, "getsockname") else 0}), flush=True)
    beat = 0.0
    buffer = b""
    while True:
        if time.monotonic() - beat > 1.0:
            beat = time.monotonic()
            link.mav.heartbeat_send(mavlink.MAV_TYPE_GCS, mavlink.MAV_AUTOPILOT_INVALID, 0, 0, 0)
        ready, _, _ = select.select([sys.stdin, link.port], [], [], 0.1)
        if sys.stdin in ready:
            data = os.read(sys.stdin.fileno(), 1 << 16)
            if not data:
                return
            *lines, buffer = (buffer + data).split(b"\n")
            for line in lines:
                send(link, json.loads(line))
        while (message := link.recv_match(blocking=False)) is not None:
            print(json.dumps(message.to_dict()), flush=True)


def send(link: mavutil.mavfile, order: dict) -> None:
    """Send what an order says."""
    if "hex" in order:
        link.write(bytes.fromhex(order["hex"]))
    elif "v1" in order:
        protocol = old.MAVLink(None, srcSystem=255, srcComponent=190)
        link.write(old.MAVLink_heartbeat_message(6, 8, 0, 0, 4, 3).pack(protocol))
    else:
        system, component, command, *values = order["long"]
        link.mav.command_long_send(system, component, command, 0, *values, *[0.0] * (7 - len(values)))


if __name__ == "__main__":
    main()
