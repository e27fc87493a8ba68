"""Running on several processes: ranks, launchers, ZeRO shards, random states, signals."""
