"""What the service and the explorer share: sockets, who may ask, and how a request is refused."""
