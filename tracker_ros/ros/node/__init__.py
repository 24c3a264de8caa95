"""The tracking node, a module a topic: `tracking` is the node, the others are what it is made of."""
