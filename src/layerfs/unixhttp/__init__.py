"""HTTP/1.1 over Unix sockets: messages, a server on trio, a client. Knows no routes."""
