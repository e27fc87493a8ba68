"""Processes beside each other: ranks, launchers, ZeRO shards, random states, signals."""
