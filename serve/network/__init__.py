"""The server process: connections and their limits, TLS, traces, starting and stopping."""
