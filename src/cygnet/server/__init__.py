"""The studio's server: ComfyUI's protocol over HTTP and WebSocket, durable jobs. Receives its nodes; knows no torch."""
