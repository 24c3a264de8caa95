"""The program ``tracker_node``: it starts the node of `tracker_ros.ros.node.tracking`, and ends it when told to.

Nothing heavy is imported here: the signals are taken over first, so that they end the program at once even while it
imports ROS and torch.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable

#: Seconds after a signal within which the program ends, whatever it is at.
_LONGEST_END = 5.0


class Signals:
    """SIGINT, SIGTERM and SIGHUP, heard by a thread, which hears them even while the main one is busy in C code.

    Until `handle` is called they end the program at once, with the exit code 0: nothing is there yet that should be
    put away. Afterwards they call what was given, once, and end the program if that has not done so in time.
    """

    def __init__(self) -> None:
        self._action: Callable[[], None] | None = None
        self._lock = threading.Lock()
        self._told = False
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # A program that was started with nohup outlives its terminal.
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, _ignore)
        threading.Thread(target=self._listen, name="signals", daemon=True).start()

    def handle(self, action: Callable[[], None]) -> None:
        """Call `action` (in the thread) at the first signal, instead of ending at once."""
        with self._lock:
            self._action = action

    def ignore(self) -> None:
        """The program is over: an impatient second Ctrl-C must not hit the interpreter, which gives handlers up."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)

    def _listen(self) -> None:
        while True:
            os.read(self._read, 1)
            with self._lock:
                action, first = self._action, not self._told
                self._told = True
            if action is None:
                leave(0)
            elif first:
                watchdog = threading.Timer(_LONGEST_END, leave, (0,))
                watchdog.daemon = True
                watchdog.start()
                with contextlib.suppress(Exception):  # The program may be on its way out already.
                    action()


def _ignore(*_: object) -> None:
    """Does nothing: the thread has heard it. Python's KeyboardInterrupt would hit anywhere, even a destructor."""


def leave(code: int) -> None:
    """End the process now, without the interpreter's own end, which waits for threads in C code and may crash there."""
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def main(args: list[str] | None = None) -> int:
    """Run the node until it is told to end (SIGINT, SIGTERM, SIGHUP, shutdown of the context). Returns the exit code.

    It is all that a process does: its signals stay taken over.
    """
    signals = Signals()
    import rclpy
    from rclpy.executors import SingleThreadedExecutor
    from rclpy.signals import SignalHandlerOptions

    from tracker_ros.ros.launching import let_images_through
    from tracker_ros.ros.node.tracking import TrackerNode
    from tracker_ros.ros.parameters import InvalidParameter
    from tracker_ros.ros.spinning import spin
    from tracker_ros.text import printable

    let_images_through(os.environ)
    try:
        rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    except Exception as error:
        print(f"tracker_node: {printable(str(error))}", file=sys.stderr)
        return 2
    context = rclpy.get_default_context()
    signals.handle(context.try_shutdown)
    node = None
    executor = SingleThreadedExecutor()
    try:
        node = TrackerNode()
        executor.add_node(node)
        spin(node, executor)
    except InvalidParameter as error:
        rclpy.logging.get_logger("tracker").fatal(printable(str(error)))
        return 2
    except Exception as error:
        if context.ok():
            raise
        # Told to end while it was being made: whatever it was at has failed without its context.
        rclpy.logging.get_logger("tracker").debug(printable(f"ended while starting: {error}"))
    finally:
        executor.shutdown()
        if node is not None:
            node.destroy_node()
        context.try_shutdown()
        signals.ignore()
    if node is not None and node.busy:
        leave(0)  # A thread that is deep in torch must not meet the interpreter's end.
    return 0


if __name__ == "__main__":
    sys.exit(main())
