"""The services that rclpy gives every node, with a coroutine around them.

rclpy answers them from one function that must return at once, and answers nothing at all where that function raises
(a lifecycle transition that is not possible now, up to rclpy 7). Here each gets a coroutine of ours, which may wait
before it calls the original, and answers in any case.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from rclpy.callback_groups import CallbackGroup
from rclpy.node import Node

#: Takes the original callback, the request and the response; returns the response.
Around = Callable[[Callable[[Any, Any], Any], Any, Any], Awaitable[Any]]


def wrap_service(node: Node, name: str, around: Around, group: CallbackGroup) -> None:
    """Have the service ``<node>/<name>`` answered by `around`, in a reentrant callback group.

    Raises:
        LookupError: the node has no such service.
    """
    ending = f"{node.get_name()}/{name}"
    service = next((service for service in node.services if service.srv_name.endswith(ending)), None)
    if service is None:
        raise LookupError(f"the node has no service {name}")
    original = service.callback

    async def answer(request: Any, response: Any) -> Any:
        return await around(original, request, response)

    service.callback = answer
    service.callback_group = group
    group.add_entity(service)
